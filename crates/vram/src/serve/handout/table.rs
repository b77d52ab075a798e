//! A shard's tensor table as it is sent: made once, and for everybody.

use std::sync::{Arc, OnceLock};

use vram_residency::handout::{Answer, ErrorCode, MAX_ANSWER, TensorInfo, encode, encoded_length};
use vram_residency::model::TensorTable;

use super::rules::Refusal;

/// The frame of a shard's tensor table, or why there is none. Its size is known from the start; it is made when the first
/// client wants it, and stays for as long as the shard.
#[derive(Debug)]
pub(crate) struct TableFrame {
    bytes: usize,
    frame: OnceLock<Arc<Vec<u8>>>,
}

impl TableFrame {
    pub(crate) fn of(table: &TensorTable) -> Self {
        Self { bytes: encoded_length(&message(table)), frame: OnceLock::new() }
    }

    /// Why a shard with this table cannot be handed out, where that is so.
    pub(crate) fn problem(&self) -> Option<String> {
        let bytes = self.bytes;
        (bytes > MAX_ANSWER).then(|| {
            format!(
                "its tensor table takes {bytes} bytes and a message of the attach protocol {MAX_ANSWER}; split the model \
                 into several files, or give its tensors shorter names"
            )
        })
    }

    /// The frame of this table, which is the one that this was made of.
    pub(super) fn frame(&self, table: &TensorTable) -> Result<Arc<Vec<u8>>, Refusal> {
        if let Some(problem) = self.problem() {
            return Err(Refusal::new(ErrorCode::Device, format!("the shard cannot be handed out: {problem}")));
        }
        // It fits, so it is never empty.
        let make = || Arc::new(encode(&message(table)).unwrap_or_default());
        Ok(Arc::clone(self.frame.get_or_init(make)))
    }
}

fn message(table: &TensorTable) -> Answer {
    Answer::Tensors { tensors: TensorInfo::all(table) }
}
