//! The form of an exported call.

/// Exports driver calls: `fn name(state, argument: type, …) { answer }`, and `release(handle)` in front of the body where
/// the call lets something go.
macro_rules! driver_calls {
    ($($(#[$doc:meta])* fn $name:ident($state:ident $(, $argument:ident: $type:ty)* $(,)?) $(release($handle:expr))? $body:block)*) => {
        /// The calls' types, to be held against `cuda.h`.
        pub(crate) fn declared() -> Vec<$crate::driver::declared::Call> {
            use $crate::driver::declared::{Call, Described};
            vec![$(Call { symbol: stringify!($name), arguments: vec![$(<$type>::described()),*] }),*]
        }

        $(
        $(#[$doc])*
        ///
        /// # Safety
        /// The pointers are null or valid for what `cuda.h` says of this call.
        #[allow(clippy::too_many_arguments, reason = "the driver's signature")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            #[allow(unused_mut, unused_assignments, reason = "for calls that release nothing")]
            let mut releases: Option<u64> = None;
            $(releases = Some($handle as u64);)?
            $crate::driver::call(stringify!($name), releases, |$state: &mut $crate::driver::State| -> $crate::driver::Answer { $body })
        }
        )*
    };
}
pub(crate) use driver_calls;
