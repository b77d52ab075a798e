// Verifies a published audit log with golang.org/x/mod, which is not ours: the signature of the newest checkpoint, that
// every older checkpoint given is a beginning of it, and that every entry is the one that the tree holds.
//
//	verify DIRECTORY VKEY-FILE [OLDER-CHECKPOINT ...]
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const width = 256

// files reads tiles from a directory in which the height is not part of a tile's path.
type files struct{ dir string }

func (f files) Height() int { return 8 }

func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		bytes, err := os.ReadFile(filepath.Join(f.dir, strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		all = append(all, bytes)
	}
	return all, nil
}

func (f files) SaveTiles([]tlog.Tile, [][]byte) {}

func open(path string, known note.Verifiers) (tree tlog.Tree, err error) {
	bytes, err := os.ReadFile(path)
	if err != nil {
		return tree, err
	}
	signed, err := note.Open(bytes, known)
	if err != nil {
		return tree, fmt.Errorf("%s: %w", path, err)
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != signed.Sigs[0].Name {
		return tree, fmt.Errorf("%s: not the text of a checkpoint", path)
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, fmt.Errorf("%s: %w", path, err)
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

func bundle(dir string, tree tlog.Tree, number int64) (first int64, bytes []byte, err error) {
	tile := tlog.Tile{H: 8, L: -1, N: number, W: width}
	first = number * width
	if tree.N-first < width {
		tile.W = int(tree.N - first)
	}
	path := strings.Replace(tile.Path(), "tile/8/data/", "tile/entries/", 1)
	bytes, err = os.ReadFile(filepath.Join(dir, path))
	return first, bytes, err
}

func verify(dir, vkey string, older []string) (int64, error) {
	text, err := os.ReadFile(vkey)
	if err != nil {
		return 0, err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	known := note.VerifierList(verifier)
	tree, err := open(filepath.Join(dir, "checkpoint"), known)
	if err != nil {
		return 0, err
	}
	hashes := tlog.TileHashReader(tree, files{dir})
	for _, path := range older {
		old, err := open(path, known)
		if err != nil {
			return 0, err
		}
		proof, err := tlog.ProveTree(tree.N, old.N, hashes)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash); err != nil {
			return 0, fmt.Errorf("%s is no beginning of the log: %w", path, err)
		}
	}
	var index int64
	for number := int64(0); index < tree.N; number++ {
		first, bytes, err := bundle(dir, tree, number)
		if err != nil {
			return 0, err
		}
		var places []int64
		var found []tlog.Hash
		for index = first; len(bytes) >= 2; index++ {
			length := int(binary.BigEndian.Uint16(bytes))
			if len(bytes) < 2+length {
				return 0, fmt.Errorf("bundle %d is cut short", number)
			}
			places = append(places, tlog.StoredHashIndex(0, index))
			found = append(found, tlog.RecordHash(bytes[2:2+length]))
			bytes = bytes[2+length:]
		}
		if len(bytes) != 0 || index > tree.N || (index < tree.N && index != first+width) {
			return 0, fmt.Errorf("bundle %d does not hold the entries that it should", number)
		}
		wanted, err := hashes.ReadHashes(places)
		if err != nil {
			return 0, err
		}
		for at := range wanted {
			if wanted[at] != found[at] {
				return 0, fmt.Errorf("entry %d is not the one in the tree", first+int64(at))
			}
		}
	}
	return index, nil
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "verify DIRECTORY VKEY-FILE [OLDER-CHECKPOINT ...]")
		os.Exit(2)
	}
	entries, err := verify(os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "REJECTED:", err)
		os.Exit(1)
	}
	fmt.Println("accepted", entries, "entries,", len(os.Args)-3, "older checkpoints")
}
