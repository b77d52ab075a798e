//! What this driver module takes `cuda.h` to say, in a form that is held against NVIDIA's own file by a test of
//! `crates/gpu-check`: the types of the functions, the numbers, and the layout of the structures.
//!
//! All of it follows from the declarations that the calls are made with; nothing is stated a second time.

use std::ffi::c_void;

use super::types::{AccessDescription, Address, AllocationProperties, Location};

/// A function as it is called.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Function {
    /// The name under which it is looked up.
    pub symbol: &'static str,
    /// The types of its arguments, as the test's templates spell them; the result is a number of 4 bytes.
    pub arguments: Vec<String>,
}

/// A structure that is handed over by address.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Structure {
    /// What `cuda.h` calls it.
    pub name: &'static str,
    /// Its size in bytes.
    pub bytes: usize,
    /// Its alignment in bytes.
    pub alignment: usize,
    /// What `cuda.h` calls its fields, where they begin, and their sizes in bytes. `first..last`: several beside each other.
    pub fields: Vec<(&'static str, usize, usize)>,
}

/// Everything.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Statement {
    /// The functions.
    pub functions: Vec<Function>,
    /// Numbers by their names in `cuda.h`.
    pub numbers: Vec<(&'static str, i64)>,
    /// The structures.
    pub structures: Vec<Structure>,
    /// The results after which a context counts as dead.
    pub sticky: Vec<i32>,
}

/// All of it.
pub(in crate::device::cuda) fn statement(more: &[(&'static str, i64)]) -> Statement {
    let mut functions = super::table::Table::declared();
    functions.extend(super::extra::declared());
    let numbers =
        [super::types::NUMBERS, super::types::ENUMERATIONS, super::types::code::NUMBERS, super::extra::NUMBERS, more]
            .concat();
    let mut structures = super::types::structures();
    structures.push(super::extra::structure());
    Statement { functions, numbers, structures, sticky: super::types::code::STICKY.to_vec() }
}

/// How the test's templates spell a type.
pub(super) trait Described {
    fn described() -> String;
}

macro_rules! integers {
    ($($kind:ty),*) => {
        $(impl Described for $kind {
            fn described() -> String {
                format!("Int<{}, {}>", size_of::<$kind>(), <$kind>::MIN != 0)
            }
        })*
    };
}

integers!(i8, u8, i32, u32, u64, usize);

impl Described for f32 {
    fn described() -> String {
        format!("Float<{}>", size_of::<Self>())
    }
}

/// Nothing that anybody looks into.
impl Described for c_void {
    fn described() -> String {
        "Opaque".to_owned()
    }
}

impl<const BYTES: usize> Described for [u8; BYTES] {
    fn described() -> String {
        format!("Bytes<{BYTES}>")
    }
}

impl Described for Address {
    fn described() -> String {
        u64::described()
    }
}

impl<T: Described> Described for *mut T {
    fn described() -> String {
        format!("Pointer<{}>", T::described())
    }
}

impl<T: Described> Described for *const T {
    fn described() -> String {
        format!("ConstPointer<{}>", T::described())
    }
}

/// Declares what a structure of ours is in `cuda.h`: `Ours = "Theirs" { our field = "their field", … }`.
macro_rules! structure {
    ($ours:ty = $theirs:literal { $($field:ident = $name:literal: $kind:ty),* $(,)? }) => {
        $crate::device::cuda::driver::header::Structure {
            name: $theirs,
            bytes: size_of::<$ours>(),
            alignment: align_of::<$ours>(),
            fields: vec![$(($name, std::mem::offset_of!($ours, $field), {
                // The type is stated for its size, and must be the field's.
                let _ = |value: &$ours| -> $kind { value.$field };
                size_of::<$kind>()
            })),*],
        }
    };
}
pub(super) use structure;

/// Declares that a structure of ours is one of `cuda.h`.
macro_rules! described_as {
    ($($ours:ty = $theirs:literal),* $(,)?) => {
        $(impl Described for $ours {
            fn described() -> String {
                concat!("Structure<", $theirs, ">").to_owned()
            }
        })*
    };
}

described_as! {
    AccessDescription = "CUmemAccessDesc",
    AllocationProperties = "CUmemAllocationProp",
    Location = "CUmemLocation",
    super::extra::Copy3d = "CUDA_MEMCPY3D",
}
