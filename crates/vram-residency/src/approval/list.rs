//! Lists as `sha256sum` and `b3sum` write them.
//!
//! ```text
//! HEX  name            plain; a star instead of the second space says the same
//! SHA256 (name) = HEX  with --tag; BLAKE3 by b3sum
//! \HEX  na\nme         a backslash in front: the name has \\, \n or \r for what cannot stand in a line
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Algorithm, ManifestError, add};
use crate::attest::hex;
use crate::digest::Expected;

/// The files of a list.
pub(super) fn parse(bytes: &[u8], algorithm: Option<Algorithm>) -> Result<BTreeMap<String, Expected>, ManifestError> {
    let mut files = BTreeMap::new();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.is_empty() {
        return Ok(files);
    }
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let wrong = |reason| ManifestError::Line { line, reason };
        let text = std::str::from_utf8(text).map_err(|_| wrong("it is not UTF-8"))?;
        if text.ends_with('\r') {
            return Err(wrong("it has Windows line ends"));
        }
        if text.trim_ascii().is_empty() {
            return Err(wrong("it is blank"));
        }
        let (is_escaped, text) = match text.strip_prefix('\\') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (named, digits, name) = tagged(text).or_else(|| plain(text)).ok_or_else(|| wrong("it has another form"))?;
        let hash = hex::array(digits).ok_or_else(|| wrong("its digest is not 64 lower-case hex digits"))?;
        let algorithm = named.or(algorithm).ok_or(ManifestError::Algorithm { line })?;
        let name = if is_escaped {
            unescaped(name).ok_or_else(|| wrong("a backslash is followed by another character"))?
        } else {
            Cow::Borrowed(name)
        };
        add(&mut files, &name, algorithm.expecting(hash))?;
    }
    Ok(files)
}

/// Algorithm, digest and name of a line.
type Parts<'a> = (Option<Algorithm>, &'a str, &'a str);

fn tagged(line: &str) -> Option<Parts<'_>> {
    let (algorithm, rest) = match line.strip_prefix("SHA256 (") {
        Some(rest) => (Algorithm::Sha256, rest),
        None => (Algorithm::Blake3, line.strip_prefix("BLAKE3 (")?),
    };
    // From the right: a name may hold the separator, a digest cannot.
    let (name, hex) = rest.rsplit_once(") = ")?;
    Some((Some(algorithm), hex, name))
}

fn plain(line: &str) -> Option<Parts<'_>> {
    let (hex, rest) = line.split_once(' ')?;
    let name = rest.strip_prefix([' ', '*'])?;
    Some((None, hex, name))
}

fn unescaped(name: &str) -> Option<Cow<'_, str>> {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name.chars();
    while let Some(character) = rest.next() {
        plain.push(match character {
            '\\' => match rest.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            other => other,
        });
    }
    Some(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    const HEX: &str = "abababababababababababababababababababababababababababababababab";

    fn read(list: &str) -> Result<BTreeMap<String, Expected>, ManifestError> {
        parse(list.as_bytes(), Some(Algorithm::Blake3))
    }

    #[test]
    fn every_form_that_the_programs_write_is_read() {
        let blake3 = Expected::Blake3(Digest::from_bytes([0xab; 32]));
        let sha256 = Expected::Sha256([0xab; 32]);
        for (line, name, expected) in [
            (format!("{HEX}  a b.bin"), "a b.bin", blake3),
            (format!("{HEX} *a.bin"), "a.bin", blake3),
            (format!("{HEX}  ./sub/a.bin"), "sub/a.bin", blake3),
            (format!("{HEX}   led"), " led", blake3),
            (format!("SHA256 (a) = b.bin) = {HEX}"), "a) = b.bin", sha256),
            (format!("BLAKE3 (a.bin) = {HEX}"), "a.bin", blake3),
            (format!("\\{HEX}  a\\\\b"), "a\\b", blake3),
            (format!("{HEX}  a\\nb"), "a\\nb", blake3),
            (format!("\\SHA256 (a\\\\b) = {HEX}"), "a\\b", sha256),
        ] {
            for list in [line.clone(), format!("{line}\n")] {
                let files = read(&list).unwrap_or_else(|error| panic!("{error}: {list}"));
                assert_eq!(files.into_iter().collect::<Vec<_>>(), [(name.to_owned(), expected)], "{list}");
            }
        }
    }

    #[test]
    fn a_list_that_could_be_read_in_two_ways_is_refused() {
        let upper = HEX.to_uppercase();
        for bad in [
            format!("{HEX} a"),
            HEX.to_owned(),
            format!("{HEX}\ta"),
            format!("{upper}  a"),
            format!("{HEX}0  a"),
            format!("MD5 (a) = {HEX}"),
            format!("SHA256 (a) = {HEX} "),
            format!("SHA256 (a)= {HEX}"),
            format!("{HEX}  a\n\n{HEX}  b"),
            format!("# a comment\n{HEX}  a"),
            format!("\\{HEX}  a\\tb"),
            format!("\\{HEX}  a\\"),
        ] {
            assert!(matches!(read(&bad), Err(ManifestError::Line { .. })), "{bad}: {:?}", read(&bad));
        }
        let windows = read(&format!("{HEX}  a\r\n{HEX}  b\r\n")).unwrap_err().to_string();
        assert!(windows.contains("line 1") && windows.contains("Windows line ends"), "{windows}");
        for bad in ["/etc/passwd", "../a", "a/../b", "a//b", "", ".", "a/"] {
            assert!(matches!(read(&format!("{HEX}  {bad}")), Err(ManifestError::Name { .. })), "{bad}");
        }
        assert!(matches!(read(&format!("\\{HEX}  a\\nb")), Err(ManifestError::Name { .. })));
        assert!(matches!(read(&format!("{HEX}  a\n{HEX}  ./a")), Err(ManifestError::Duplicate { .. })));
        assert!(matches!(parse(format!("{HEX}  a").as_bytes(), None), Err(ManifestError::Algorithm { line: 1 })));
        assert!(matches!(parse(b"\xff", None), Err(ManifestError::Line { line: 1, .. })));
    }
}
