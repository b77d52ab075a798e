//! From what the user names to the model files to seal: a file, a shard index, or a directory.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::error::shown;
use super::limits::{self, NameSet, fault_in_name};
use super::{Format, ModelError, ModelFile, Source, TensorTable, open_regular, read_exact_at};

/// What the name of a shard index ends in.
const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// The index that a directory is searched for.
const INDEX_NAME: &str = "model.safetensors.index.json";

/// The model files that `path` stands for.
///
/// - A file stands for itself.
/// - A `*.safetensors.index.json` stands for its shards, ordered by name, after checking it against their headers:
///   every tensor it lists is in the file it names, and every tensor in those files is listed.
/// - A directory stands for its `model.safetensors.index.json` if it has one, else for its `*.safetensors` and
///   `*.gguf` files, ordered by name.
///
/// # Errors
/// [`ModelError::In`] with the path that is at fault and why.
pub fn discover(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    find(path).map(|found| found.files)
}

/// What a path stands for, as [`discover`] has it, and the index that decided it, where one did.
///
/// # Errors
/// As [`discover`].
pub fn find(path: &Path) -> Result<Found, ModelError> {
    let kind = fs::metadata(path).map_err(|cause| ModelError::Open { cause }.within(path))?;
    if kind.is_dir() {
        let index = path.join(INDEX_NAME);
        return if index.exists() { from_index(&index) } else { from_directory(path) };
    }
    if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(INDEX_SUFFIX)) {
        return from_index(path);
    }
    Ok(Found { files: vec![path.to_owned()], index: None })
}

/// The model files that a path stands for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// The index that named them, where one did.
    pub index: Option<ShardIndex>,
}

/// A shard index as it was read: whoever approves it must approve these bytes, because they decided.
#[derive(Clone)]
pub struct ShardIndex {
    path: PathBuf,
    text: Vec<u8>,
}

impl ShardIndex {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The very bytes that were parsed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.text
    }
}

impl fmt::Debug for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardIndex({}, {} bytes)", self.path.display(), self.text.len())
    }
}

fn from_directory(path: &Path) -> Result<Found, ModelError> {
    let unreadable = |cause| ModelError::Open { cause }.within(path);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if Format::of_name(&file).is_some() && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(ModelError::NoModels.within(path)) } else { Ok(Found { files, index: None }) }
}

fn from_index(path: &Path) -> Result<Found, ModelError> {
    let text = read_index(path).map_err(|fault| fault.within(path))?;
    let index = parse_index(&text).map_err(|fault| fault.within(path))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut files = Vec::new();
    for (shard, tensors) in index {
        let file = directory.join(&*shard);
        let opened = ModelFile::open(&file, Some(Format::Safetensors))?;
        compare(&shard, &tensors, opened.table()).map_err(|fault| fault.within(path))?;
        files.push(file);
    }
    Ok(Found { files, index: Some(ShardIndex { path: path.to_owned(), text }) })
}

/// The same names in the index and in the shard. As the index lists each name once, no tensor can be in two shards.
fn compare(shard: &str, listed: &[Box<str>], table: &TensorTable) -> Result<(), ModelError> {
    if let Some(name) = listed.iter().find(|name| table.get(name).is_none()) {
        return Err(ModelError::MissingTensor { name: shown(name), shard: shown(shard) });
    }
    // `listed` is sorted.
    let extra = table.tensors().iter().find(|tensor| listed.binary_search(&tensor.name).is_err());
    match extra {
        Some(tensor) => Err(ModelError::ExtraTensor { name: shown(&tensor.name), shard: shown(shard) }),
        None => Ok(()),
    }
}

/// Tensor names by shard, both in order. Each name is there once.
type Shards = BTreeMap<Box<str>, Vec<Box<str>>>;

fn read_index(path: &Path) -> Result<Vec<u8>, ModelError> {
    let (file, _) = open_regular(path)?;
    let found = Source::len(&file);
    if found > limits::MAX_INDEX {
        let (what, limit) = ("the index's length", limits::MAX_INDEX);
        return Err(ModelError::Limit { what, offset: 0, found, limit });
    }
    let mut text = vec![0; usize::try_from(found).unwrap_or_default()];
    read_exact_at(&file, 0, &mut text)?;
    Ok(text)
}

fn parse_index(text: &[u8]) -> Result<Shards, ModelError> {
    let mut scan = IndexScan::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let outcome = reader.deserialize_map(&mut scan).and_then(|()| reader.end());
    if let Err(error) = outcome {
        let offset = super::safetensors::offset_of(&error, text);
        return Err(match scan.fault {
            Some(fault) => fault(offset),
            None => ModelError::Json { offset, reason: super::safetensors::reason_of(&error) },
        });
    }

    let mut shards = scan.shards;
    shards.values_mut().for_each(|names| names.sort_unstable());
    Ok(shards)
}

/// Why a shard's name is refused, if it is. Shards lie beside their index.
fn fault_in_shard(name: &str) -> Option<&'static str> {
    if name.contains(['/', '\\']) || name.starts_with('.') {
        Some("a shard lies in the directory of its index, so its name has no path in it")
    } else if Format::of_name(Path::new(name)) != Some(Format::Safetensors) {
        Some("it does not end in .safetensors")
    } else {
        fault_in_name(name)
    }
}

/// What was read of the index.
#[derive(Default)]
struct IndexScan {
    shards: Shards,
    entries: usize,
    names: NameSet,
    fault: Option<super::safetensors::Fault>,
}

impl<'de> Visitor<'de> for &mut IndexScan {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut metadata_seen, mut weights_seen) = (false, false);
        while let Some(field) = map.next_key::<String>()? {
            let twice = match field.as_str() {
                "weight_map" => {
                    map.next_value_seed(WeightMap(self))?;
                    std::mem::replace(&mut weights_seen, true)
                }
                "metadata" => {
                    map.next_value::<IgnoredAny>()?;
                    std::mem::replace(&mut metadata_seen, true)
                }
                _ => {
                    return Err(A::Error::custom(format_args!("unknown field {}", shown(&field))));
                }
            };
            if twice {
                return Err(A::Error::custom(format_args!("{} appears twice", shown(&field))));
            }
        }
        if self.entries == 0 {
            return Err(A::Error::custom("there is no weight_map, or it is empty"));
        }
        Ok(())
    }
}

/// Shard name by tensor name.
struct WeightMap<'a>(&'a mut IndexScan);

impl<'de> DeserializeSeed<'de> for WeightMap<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of shard names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let scan = self.0;
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            scan.entries = scan.entries.saturating_add(1);
            if scan.entries > limits::MAX_INDEX_ENTRIES {
                return Err(A::Error::custom("more tensors than are accepted"));
            }
            if let Some(reason) = fault_in_name(&tensor) {
                let (what, name) = ("tensor", shown(&tensor));
                scan.fault = Some(Box::new(move |offset| ModelError::Name { what, name, offset, reason }));
                return Err(A::Error::custom("refused"));
            }
            if !scan.names.insert(&tensor) {
                let (what, name) = ("tensor", shown(&tensor));
                scan.fault = Some(Box::new(move |offset| ModelError::Duplicate { what, name, offset }));
                return Err(A::Error::custom("refused"));
            }
            if let Some(reason) = fault_in_shard(&shard) {
                let name = shown(&shard);
                scan.fault = Some(Box::new(move |_| ModelError::ShardName { name, reason }));
                return Err(A::Error::custom("refused"));
            }
            scan.shards.entry(shard.into()).or_default().push(tensor.into());
        }
        Ok(())
    }
}
