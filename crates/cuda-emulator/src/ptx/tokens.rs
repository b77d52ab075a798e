//! Words, numbers and marks of a PTX text.

use super::PtxError;

/// A word of the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Name, register, label, directive or opcode with its suffixes.
    Word(String),
    /// Bits of a number, and how it was written.
    Number(u64, Written),
    /// A string in quotes.
    Text,
    /// One character.
    Mark(char),
}

/// How a number was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Integer,
    F32,
    F64,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// Length of a word, with `L1::no_allocate` in one piece.
fn word_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    while let Some(&c) = bytes.get(length) {
        if is_word(c) {
            length += 1;
        } else if bytes[length..].starts_with(b"::") && bytes.get(length + 2).is_some_and(|&c| is_word(c)) {
            length += 2;
        } else {
            break;
        }
    }
    length
}

/// The words of a text with their lines.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, u32)>, PtxError> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1_u32, Vec::new());
    while let Some(&c) = bytes.get(at) {
        let rest = &text[at..];
        if c == b'\n' {
            line += 1;
            at += 1;
        } else if c.is_ascii_whitespace() {
            at += 1;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").ok_or_else(|| PtxError::new(line, "a comment does not end"))?;
            line += u32::try_from(rest[..end].matches('\n').count()).unwrap_or(0);
            at += end + 2;
        } else if c == b'"' {
            let end = rest[1..].find('"').ok_or_else(|| PtxError::new(line, "a string does not end"))?;
            out.push((Token::Text, line));
            at += end + 2;
        } else if is_word(c) {
            let length = word_length(&bytes[at..]);
            let word = &rest[..length];
            let token = if c.is_ascii_digit() { number(word, line)? } else { Token::Word(word.to_owned()) };
            out.push((token, line));
            at += length;
        } else if c.is_ascii() {
            out.push((Token::Mark(char::from(c)), line));
            at += 1;
        } else {
            return Err(PtxError::new(line, "a character that is not ASCII"));
        }
    }
    Ok(out)
}

fn number(word: &str, line: u32) -> Result<Token, PtxError> {
    let bad = |_| PtxError::new(line, format!("'{word}' is no number"));
    let lower = word.to_ascii_lowercase();
    let digits = lower.trim_end_matches('u');
    let (bits, written) = if let Some(hex) = digits.strip_prefix("0x") {
        (u64::from_str_radix(hex, 16).map_err(bad)?, Written::Integer)
    } else if let Some(hex) = digits.strip_prefix("0f") {
        (u64::from_str_radix(hex, 16).map_err(bad)?, Written::F32)
    } else if let Some(hex) = digits.strip_prefix("0d") {
        (u64::from_str_radix(hex, 16).map_err(bad)?, Written::F64)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        (u64::from_str_radix(binary, 2).map_err(bad)?, Written::Integer)
    } else if digits.len() > 1 && digits.starts_with('0') && !digits.contains('.') {
        (u64::from_str_radix(digits, 8).map_err(bad)?, Written::Integer)
    } else if let Some((major, minor)) = digits.split_once('.') {
        // Only in `.version 7.8`: major in the high half.
        let part = |text: &str| text.parse::<u32>().map_err(bad);
        ((u64::from(part(major)?) << 32) | u64::from(part(minor)?), Written::F64)
    } else {
        (digits.parse::<u64>().map_err(bad)?, Written::Integer)
    };
    Ok(Token::Number(bits, written))
}
