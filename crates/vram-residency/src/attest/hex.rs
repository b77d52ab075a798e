//! Lower-case hex digits, and nothing else.

/// The bytes of an even number of lower-case hex digits.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some((nibble(*high)? << 4) | nibble(*low)?)).collect()
}

/// The same of a fixed length.
pub(crate) fn array<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() / 2 == N { bytes(text)?.try_into().ok() } else { None }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' | b'a'..=b'f' => char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok()),
        _ => None,
    }
}
