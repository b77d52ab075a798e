//! Keys as text, in the one form in which OpenSSL writes them. Anything else is refused, so a key has one text.

use std::fmt::Write as _;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use zeroize::Zeroizing;

/// Characters of base64 on a line.
const COLUMNS: usize = 64;
/// Longer than any key's text.
const MAX_TEXT: usize = 4096;

/// The text of DER bytes under a label.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(BASE64_STANDARD.encode(der));
    // As large as it will be, so that no part of a secret is left behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT));
    let _ = writeln!(text, "-----BEGIN {label}-----");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(COLUMNS).unwrap_or((rest, ""));
        let _ = writeln!(text, "{line}");
        rest = after;
    }
    let _ = writeln!(text, "-----END {label}-----");
    text
}

/// The DER bytes under a label; `None` where the text is not what [`encode`] makes of them. White space at its ends does
/// not matter.
pub(crate) fn decode(label: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.trim();
    if text.len() > MAX_TEXT {
        return None;
    }
    let body = text.strip_prefix("-----BEGIN ")?.strip_prefix(label)?.strip_prefix("-----")?;
    let body = body.strip_suffix("-----")?.strip_suffix(label)?.strip_suffix("-----END ")?;
    let mut joined = Zeroizing::new(String::with_capacity(MAX_TEXT));
    body.lines().for_each(|line| joined.push_str(line.trim()));
    let der = Zeroizing::new(BASE64_STANDARD.decode(joined.as_bytes()).ok()?);
    // Line ends of another system are forgiven, anything else is not.
    let plain = Zeroizing::new(text.replace("\r\n", "\n"));
    (encode(label, &der).trim_end() == plain.as_str()).then_some(der)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_text() {
        let der: Vec<u8> = (0..120).collect();
        let text = encode("PUBLIC KEY", &der);
        assert_eq!(decode("PUBLIC KEY", &text).unwrap().as_slice(), der);
        assert_eq!(decode("PUBLIC KEY", &text.replace('\n', "\r\n")).unwrap().as_slice(), der);
        assert!(decode("PRIVATE KEY", &text).is_none());
        for at in 0..text.trim_end().len() {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let read = decode("PUBLIC KEY", std::str::from_utf8(&changed).unwrap());
            assert!(read.is_none_or(|read| *read != der), "byte {at}");
        }
        assert!(decode("PUBLIC KEY", &text.replacen("AA", "AA ", 1)).is_none());
    }
}
