//! What the exported calls and structures are taken to be in `cuda.h`, for a test that holds them against NVIDIA's own file.
//!
//! Looser than the types of the code under test, on purpose: a handle is a word here, whatever it is called there.

use std::ffi::c_char;

use super::abi::{AccessDesc, AllocationProp, In, Location, Memcpy3d, Out, code};

/// An exported call.
#[derive(Debug, Clone)]
pub struct Call {
    /// The name under which it is exported.
    pub symbol: &'static str,
    /// The types of its arguments, as the test's templates spell them.
    pub arguments: Vec<String>,
}

/// A structure: its name in `cuda.h`, its size and alignment, and its fields with their places and sizes.
pub type Structure = (&'static str, usize, usize, Vec<(&'static str, usize, usize)>);

/// All exported calls of the driver.
#[must_use]
pub fn calls() -> Vec<Call> {
    let parts = [
        super::contexts::declared,
        super::devices::declared,
        super::graphs::declared,
        super::launches::declared,
        super::modules::declared,
        super::pointers::declared,
        super::streams::declared,
        super::transfers::declared,
        super::virtual_memory::declared,
    ];
    parts.iter().flat_map(|part| part()).collect()
}

/// The results that the emulator gives or names, by their names in `cuda.h`.
#[must_use]
pub fn results() -> Vec<(&'static str, i64)> {
    code::TEXTS.iter().map(|(number, name, _)| (name.trim_end_matches('\0'), i64::from(*number))).collect()
}

/// The structures that are handed over by address.
#[must_use]
pub fn structures() -> Vec<Structure> {
    macro_rules! structure {
        ($ours:ty = $theirs:literal { $($field:ident = $name:literal: $kind:ty),* $(,)? }) => {
            ($theirs, size_of::<$ours>(), align_of::<$ours>(), vec![$(($name, std::mem::offset_of!($ours, $field), {
                // The type is stated for its size, and must be the field's.
                let _ = |value: &$ours| -> $kind { value.$field };
                size_of::<$kind>()
            })),*])
        };
    }
    vec![
        structure!(Location = "CUmemLocation" { kind = "type": u32, id = "id": i32 }),
        structure!(AllocationProp = "CUmemAllocationProp" {
            kind = "type": u32,
            requested_handle_types = "requestedHandleTypes": u32,
            location = "location": Location,
            win32 = "win32HandleMetaData": u64,
            flags = "allocFlags": [u8; 8],
        }),
        structure!(AccessDesc = "CUmemAccessDesc" { location = "location": Location, flags = "flags": u32 }),
        structure!(Memcpy3d = "CUDA_MEMCPY3D" {
            src_place = "srcXInBytes..srcLOD": [usize; 4],
            src_memory_type = "srcMemoryType": u32,
            src_host = "srcHost": u64,
            src_device = "srcDevice": u64,
            src_array = "srcArray..reserved0": [u64; 2],
            src_pitch = "srcPitch..srcHeight": [usize; 2],
            dst_place = "dstXInBytes..dstLOD": [usize; 4],
            dst_memory_type = "dstMemoryType": u32,
            dst_host = "dstHost": u64,
            dst_device = "dstDevice": u64,
            dst_array = "dstArray..reserved1": [u64; 2],
            dst_pitch = "dstPitch..dstHeight": [usize; 2],
            width = "WidthInBytes": usize,
            height = "Height": usize,
            depth = "Depth": usize,
        }),
    ]
}

/// How the test's templates spell a type.
pub(crate) trait Described {
    fn described() -> String;
}

macro_rules! described_as {
    ($($kind:ty = $spelled:literal),* $(,)?) => {
        $(impl Described for $kind {
            fn described() -> String {
                $spelled.to_owned()
            }
        })*
    };
}

described_as! {
    u8 = "Int<1, false>",
    i32 = "Int<4, true>",
    u32 = "Int<4, false>",
    usize = "Int<8, false>",
    u64 = "Word",
    f32 = "Float<4>",
    [u8; 16] = "Bytes<16>",
    *const c_char = "AnyPointer<Int<1, true>>",
    *mut c_char = "Pointer<Int<1, true>>",
    Location = "Structure<CUmemLocation>",
    AllocationProp = "Structure<CUmemAllocationProp>",
    AccessDesc = "Structure<CUmemAccessDesc>",
    Memcpy3d = "Structure<CUDA_MEMCPY3D>",
}

impl<T: Described> Described for Out<T> {
    fn described() -> String {
        format!("OutPointer<{}>", T::described())
    }
}

impl<T: Described> Described for In<T> {
    fn described() -> String {
        format!("AnyPointer<{}>", T::described())
    }
}
