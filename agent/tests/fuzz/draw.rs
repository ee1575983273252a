//! Messages of any type, drawn from its descriptor.

use blkpilot_env::Rng;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use rand::{Rng as _, RngExt as _};

use super::words;

/// Messages within messages.
const DEEPEST: u32 = 6;
/// Entries of a list; a few are longer.
const MOST_ENTRIES: usize = 4;
const MANY_ENTRIES: usize = 300;

/// A message of this type, with about two thirds of its fields set.
pub(crate) fn message(rng: &mut Rng, of: &MessageDescriptor, depth: u32) -> DynamicMessage {
    let mut drawn = DynamicMessage::new(of.clone());
    for field in of.fields() {
        let one_of = field.containing_oneof();
        let chance = match &one_of {
            Some(one_of) => 0.9 / one_of.fields().len() as f64,
            None => 0.65,
        };
        let is_deep = depth >= DEEPEST && matches!(field.kind(), Kind::Message(_));
        if !is_deep && rng.random_bool(chance) {
            let value = value(rng, &field, depth);
            drawn.set_field(&field, value);
        }
    }
    drawn
}

fn value(rng: &mut Rng, field: &FieldDescriptor, depth: u32) -> Value {
    if field.is_map() {
        return map(rng, field, depth);
    }
    if !field.is_list() {
        return single(rng, field, depth);
    }
    let is_long = depth < 2 && rng.random_bool(0.03);
    let most = if is_long { MANY_ENTRIES } else { MOST_ENTRIES };
    let count = rng.random_range(0..=most);
    let depth = if is_long { DEEPEST } else { depth };
    Value::List((0..count).map(|_| single(rng, field, depth)).collect())
}

fn map(rng: &mut Rng, field: &FieldDescriptor, depth: u32) -> Value {
    let Kind::Message(entry) = field.kind() else {
        unreachable!("a map is a list of entries")
    };
    let of = entry.map_entry_value_field();
    let entries = (0..rng.random_range(0..3)).map(|_| {
        let key = MapKey::String(words::text(rng, "scenario"));
        (key, single(rng, &of, depth + 1))
    });
    Value::Map(entries.collect())
}

fn single(rng: &mut Rng, field: &FieldDescriptor, depth: u32) -> Value {
    match field.kind() {
        Kind::Bool => Value::Bool(rng.random()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(words::whole(rng) as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(words::whole(rng)),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(words::whole(rng) as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(words::whole(rng) as u64),
        Kind::Float => Value::F32(words::real(rng) as f32),
        Kind::Double => Value::F64(words::real(rng)),
        Kind::String => Value::String(words::text(rng, field.name())),
        Kind::Bytes => Value::Bytes(bytes(rng).into()),
        Kind::Enum(of) => Value::EnumNumber(match rng.random_range(0..10) {
            0 => words::whole(rng) as i32,
            _ => rng.random_range(0..of.values().len()) as i32,
        }),
        Kind::Message(of) => Value::Message(message(rng, &of, depth + 1)),
    }
}

fn bytes(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..64)];
    rng.fill_bytes(&mut bytes);
    bytes
}
