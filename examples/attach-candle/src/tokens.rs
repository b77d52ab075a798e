//! A sentence as token numbers: lower case, split at spaces and punctuation, then the longest known pieces. Enough for
//! English; what else BERT's tokenizer does (accents, Chinese) is left out.

use std::collections::HashMap;

use anyhow::{Context, Result};

pub fn encode(vocabulary: &str, sentence: &str) -> Result<Vec<u32>> {
    let known: HashMap<&str, u32> = vocabulary.lines().zip(0..).collect();
    let number = |piece: &str| known.get(piece).copied();
    let mut ids = vec![number("[CLS]").context("this is no vocabulary of BERT's: [CLS] is missing")?];
    for word in words(&sentence.to_lowercase()) {
        match pieces(&word, &number) {
            Some(pieces) => ids.extend(pieces),
            None => ids.extend(number("[UNK]")),
        }
    }
    ids.extend(number("[SEP]"));
    Ok(ids)
}

fn words(sentence: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for character in sentence.chars() {
        if character.is_whitespace() {
            words.push(String::new());
        } else if character.is_ascii_punctuation() {
            words.extend([character.to_string(), String::new()]);
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn pieces(word: &str, number: &impl Fn(&str) -> Option<u32>) -> Option<Vec<u32>> {
    let mut pieces = Vec::new();
    let mut rest = word;
    while !rest.is_empty() {
        let cuts = rest.char_indices().map(|(at, character)| at + character.len_utf8()).rev();
        let longest = cuts.into_iter().find_map(|cut| {
            let (piece, rest) = rest.split_at(cut);
            let id = if pieces.is_empty() { number(piece) } else { number(&format!("##{piece}")) };
            id.map(|id| (id, rest))
        });
        let (id, left) = longest?;
        pieces.push(id);
        rest = left;
    }
    Some(pieces)
}
