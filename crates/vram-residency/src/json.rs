//! JSON from others, read strictly.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A JSON object, and nothing else that could stand for it: `serde` alone also takes a list of a struct's values, in the
/// order of its fields, so that one thing could be written in two ways.
///
/// ```
/// use vram_residency::json::Object;
///
/// #[derive(serde::Deserialize)]
/// struct Asked {
///     nonce: String,
/// }
/// assert!(serde_json::from_str::<Asked>(r#"["00"]"#).is_ok());
/// assert!(serde_json::from_str::<Object<Asked>>(r#"["00"]"#).is_err());
/// let Object(asked): Object<Asked> = serde_json::from_str(r#"{"nonce":"00"}"#)?;
/// assert_eq!(asked.nonce, "00");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "what is in it is all there is to it")]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}
