//! From a path to model files: single files, directories, shard indexes, and everything that is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "common/model_files.rs"]
mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{small_gguf, small_safetensors, written};
use tempfile::TempDir;
use vram_residency::model::writer::TensorSpec;
use vram_residency::model::{Dtype, Format, ModelError, ModelFile, discover, find, read_exact_at};

const INDEX: &str = "model.safetensors.index.json";

/// A file whose tensors have these names.
fn shard(names: &[&str]) -> Vec<u8> {
    written(names.iter().map(|name| TensorSpec::new(*name, Dtype::F32, [2])).collect())
}

/// A directory with two shards and an index that says `weight_map`.
fn sharded(weight_map: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), shard(&["a", "b"])).unwrap();
    fs::write(dir.path().join("model-00002-of-00002.safetensors"), shard(&["c"])).unwrap();
    let index = format!(r#"{{"metadata":{{"total_size":24}},"weight_map":{weight_map}}}"#);
    fs::write(dir.path().join(INDEX), index).unwrap();
    dir
}

const GOOD: &str = r#"{"c":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors","a":"model-00001-of-00002.safetensors"}"#;

#[track_caller]
fn refused(path: &Path) -> ModelError {
    let error = discover(path).unwrap_err();
    println!("{error}");
    assert!(matches!(error, ModelError::In { .. }), "no path in: {error}");
    error
}

fn names(files: &[PathBuf]) -> Vec<&str> {
    files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect()
}

#[test]
fn a_file_stands_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("anything.bin");
    fs::write(&file, b"x").unwrap();
    assert_eq!(discover(&file).unwrap(), std::slice::from_ref(&file));
    let error = refused(&dir.path().join("missing"));
    assert!(matches!(error.fault(), ModelError::Open { .. }));
    assert!(error.to_string().contains("check the path"), "{error}");
}

#[test]
fn a_directory_stands_for_its_models() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(refused(dir.path()).fault(), ModelError::NoModels));
    for name in ["b.gguf", "a.safetensors", "notes.txt", "c.safetensors.bak"] {
        fs::write(dir.path().join(name), b"x").unwrap();
    }
    fs::create_dir(dir.path().join("d.gguf")).unwrap();
    assert_eq!(names(&discover(dir.path()).unwrap()), ["a.safetensors", "b.gguf"]);
}

#[test]
fn an_index_stands_for_its_shards() {
    let dir = sharded(GOOD);
    let expected = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    assert_eq!(names(&discover(dir.path()).unwrap()), expected);
    assert_eq!(names(&discover(&dir.path().join(INDEX)).unwrap()), expected);
    // Another model beside it does not join in.
    fs::write(dir.path().join("other.safetensors"), shard(&["x"])).unwrap();
    assert_eq!(names(&discover(dir.path()).unwrap()), expected);
}

#[test]
fn the_index_that_decided_is_kept_as_it_was_read() {
    let dir = sharded(GOOD);
    let path = dir.path().join(INDEX);
    let bytes = fs::read(&path).unwrap();
    for named in [dir.path(), &path] {
        let found = find(named).unwrap();
        fs::write(&path, b"another").unwrap();
        let index = found.index.unwrap();
        assert_eq!(
            (index.path(), index.bytes()),
            (path.as_path(), bytes.as_slice()),
            "whoever approves it sees those bytes"
        );
        assert_eq!(found.files.len(), 2);
        fs::write(&path, &bytes).unwrap();
    }
    let file = dir.path().join("model-00002-of-00002.safetensors");
    assert!(find(&file).unwrap().index.is_none());
}

#[test]
fn shards_may_be_links_as_in_a_download_cache() {
    let dir = sharded(GOOD);
    let blobs = tempfile::tempdir().unwrap();
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let blob = blobs.path().join(name);
        fs::rename(dir.path().join(name), &blob).unwrap();
        symlink(&blob, dir.path().join(name)).unwrap();
    }
    assert_eq!(discover(dir.path()).unwrap().len(), 2);
}

#[test]
fn shard_names_with_a_path_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("outside.safetensors"), shard(&["a"])).unwrap();
    let dir = outer.path().join("model");
    fs::create_dir(&dir).unwrap();
    for name in [
        "../outside.safetensors",
        "/etc/passwd",
        "/etc/passwd.safetensors",
        "sub/model.safetensors",
        "./model.safetensors",
        "..",
        ".",
        "",
        "..\\\\model.safetensors",
        ".hidden.safetensors",
        "model.bin",
        "model.safetensors/",
        "a\\u0000.safetensors",
        "a\\n.safetensors",
        "https://example.org/model.safetensors",
    ] {
        let index = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        fs::write(dir.join(INDEX), index).unwrap();
        let error = refused(&dir);
        assert!(matches!(error.fault(), ModelError::ShardName { .. }), "{name}: {error}");
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    // In the wrong shard; it is missing there, though it is elsewhere.
    let dir = sharded(&GOOD.replace(r#""c":"model-00002"#, r#""c":"model-00001"#));
    let error = refused(dir.path());
    assert!(matches!(error.fault(), ModelError::MissingTensor { .. }), "{error}");
    // Listed, but nowhere.
    let dir = sharded(&GOOD.replacen('{', r#"{"d":"model-00002-of-00002.safetensors","#, 1));
    let error = refused(dir.path());
    assert!(matches!(error.fault(), ModelError::MissingTensor { .. }), "{error}");
    // There, but not listed.
    let dir = sharded(&GOOD.replace(r#""b":"model-00001-of-00002.safetensors","#, ""));
    let error = refused(dir.path());
    assert!(matches!(error.fault(), ModelError::ExtraTensor { .. }), "{error}");
    // In two shards.
    let dir = sharded(GOOD);
    fs::write(dir.path().join("model-00002-of-00002.safetensors"), shard(&["c", "a"])).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error.fault(), ModelError::ExtraTensor { .. }), "{error}");
    // A shard that is not there, is empty, or is damaged: the shard is named.
    let dir = sharded(GOOD);
    let second = dir.path().join("model-00002-of-00002.safetensors");
    fs::remove_file(&second).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error.fault(), ModelError::Open { .. }), "{error}");
    assert!(error.to_string().contains("model-00002-of-00002.safetensors"), "{error}");
    fs::write(&second, b"").unwrap();
    assert!(matches!(refused(dir.path()).fault(), ModelError::Empty));
    fs::write(&second, &shard(&["c"])[..40]).unwrap();
    assert!(matches!(refused(dir.path()).fault(), ModelError::Truncated { .. }));
}

#[test]
fn an_index_that_two_programs_could_read_differently_is_refused() {
    let twice = GOOD.replacen('{', r#"{"a":"model-00002-of-00002.safetensors","#, 1);
    let error = refused(sharded(&twice).path());
    assert!(matches!(error.fault(), ModelError::Duplicate { .. }), "{error}");
    assert!(error.offset() > Some(0), "{error}");
    let escaped = GOOD.replacen('{', r#"{"\u0061":"model-00002-of-00002.safetensors","#, 1);
    assert!(matches!(refused(sharded(&escaped).path()).fault(), ModelError::Duplicate { .. }));
    let error = refused(sharded(&format!(r#"{GOOD},"weight_map":{GOOD}"#)).path());
    assert!(matches!(error.fault(), ModelError::Duplicate { .. }), "{error}");

    let dir = sharded(GOOD);
    for index in [
        "",
        "{}",
        "[]",
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":[]}"#,
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":{"a":"x.safetensors"}"#,
        r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"},"other":1}"#,
        r#"{"metadata":{},"metadata":{},"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#,
        r#"{"metadata":{}} x"#,
    ] {
        fs::write(dir.path().join(INDEX), index).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error.fault(), ModelError::Json { .. } | ModelError::Empty), "{index}: {error}");
    }
    fs::write(dir.path().join(INDEX), r#"{"weight_map":{"":"model-00001-of-00002.safetensors"}}"#).unwrap();
    assert!(matches!(refused(dir.path()).fault(), ModelError::Name { .. }));
    let file = fs::File::create(dir.path().join(INDEX)).unwrap();
    file.set_len((32 << 20) + 1).unwrap();
    assert!(matches!(refused(dir.path()).fault(), ModelError::Limit { .. }));
}

// ---- opening one file ----

#[test]
fn an_opened_file_tells_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, format) in [
        ("m.safetensors", small_safetensors(), Format::Safetensors),
        ("m.gguf", small_gguf().build(), Format::Gguf),
        ("gguf in disguise.safetensors", small_gguf().build(), Format::Gguf),
        ("no extension", small_safetensors(), Format::Safetensors),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let file = ModelFile::open(&path, None).unwrap();
        assert_eq!((file.path(), file.len(), file.format()), (&*path, bytes.len() as u64, format));
        assert!(!file.is_empty() && !file.table().is_empty());
        assert_eq!(file.header_digest(), *blake3::hash(&bytes[..file.data_start() as usize]).as_bytes());
        let mut read = vec![0; bytes.len()];
        read_exact_at(file.source(), 0, &mut read).unwrap();
        assert!(read == bytes);
        assert!(matches!(
            read_exact_at(file.source(), 1, &mut read),
            Err(ModelError::Read { offset, .. }) if offset == bytes.len() as u64
        ));

        let raw = ModelFile::open(&path, Some(Format::Raw)).unwrap();
        assert_eq!((raw.data_start(), raw.table().len(), raw.format()), (0, 0, Format::Raw));
    }
}

#[test]
fn what_is_not_a_model_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let open = |path: &Path| {
        let error = ModelFile::open(path, None).unwrap_err();
        println!("{error}");
        assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
        match error {
            ModelError::In { fault, .. } => *fault,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(open(&dir.path().join("missing")), ModelError::Open { .. }));
    assert!(matches!(open(dir.path()), ModelError::IsADirectory));
    assert!(matches!(open(&put("empty", b"")), ModelError::Empty));
    assert!(matches!(open(&put("text", b"hello, world")), ModelError::Unrecognized));
    assert!(matches!(open(&put("short", b"{")), ModelError::Unrecognized));
    // The name promises a format: the fault is told in its terms.
    assert!(matches!(open(&put("x.safetensors", b"hell")), ModelError::Truncated { .. }));
    assert!(matches!(open(&put("y.safetensors", b"hello, world")), ModelError::Limit { .. }));
    assert!(matches!(open(&put("x.gguf", b"hello, world")), ModelError::NotGguf { .. }));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    assert!(matches!(open(&put("pointer.safetensors", pointer)), ModelError::LfsPointer));
    let whole = small_safetensors();
    assert!(matches!(open(&put("cut.safetensors", &whole[..100])), ModelError::Truncated { .. }));
    // A pipe would block whoever opens it.
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(open(&pipe), ModelError::NotAFile));
    assert!(matches!(open(Path::new("/dev/null")), ModelError::NotAFile));
    // A link that leads nowhere.
    let link = dir.path().join("link");
    symlink(dir.path().join("missing"), &link).unwrap();
    assert!(matches!(open(&link), ModelError::Open { .. }));
}

#[test]
fn a_file_that_is_replaced_or_changed_after_opening_is_told_by_the_header_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let original = small_safetensors();
    fs::write(&path, &original).unwrap();
    let file = ModelFile::open(&path, None).unwrap();
    let resident_header = |file: &ModelFile| {
        let mut header = vec![0; file.data_start() as usize];
        read_exact_at(file.source(), 0, &mut header).unwrap();
        *blake3::hash(&header).as_bytes()
    };
    // Another file takes the name: the open one is still the one that was parsed.
    fs::write(dir.path().join("new"), shard(&["other"])).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert_eq!(resident_header(&file), file.header_digest());
    // The same file is written over, at the same length: its header is no longer the one that was parsed.
    let file = ModelFile::open(&path, None).unwrap();
    let mut changed = fs::read(&path).unwrap();
    let at = changed.windows(5).position(|window| window == b"other").unwrap();
    changed[at] = b'0';
    fs::write(&path, &changed).unwrap();
    assert_ne!(resident_header(&file), file.header_digest());
    // It is cut short: reading on says where it ends now.
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(20).unwrap();
    let mut header = vec![0; file.data_start() as usize];
    let error = read_exact_at(file.source(), 0, &mut header).unwrap_err();
    assert!(matches!(error, ModelError::Read { offset: 20, .. }), "{error}");
}

#[test]
fn formats_have_names() {
    for format in [Format::Safetensors, Format::Gguf, Format::Raw] {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert!("GGUF".parse::<Format>().unwrap_err().to_string().contains("safetensors, gguf, raw"));
}
