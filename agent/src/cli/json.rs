//! Messages as JSON, by the protobuf mapping but with every field present, for scripts.

use blkpilot_proto::v1::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

/// Turns messages of the package into JSON.
#[derive(Debug)]
pub(super) struct Json(DescriptorPool);

impl Json {
    pub(super) fn new() -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET);
        Self(pool.expect("the build has checked the descriptor set"))
    }

    /// `name` is the message's without its package.
    pub(super) fn value(&self, name: &str, message: &impl Message) -> Value {
        let descriptor = self.0.get_message_by_name(&format!("blkpilot.v1.{name}"));
        let descriptor = descriptor.expect("commands name messages of the package");
        let message = DynamicMessage::decode(descriptor, &*message.encode_to_vec());
        let message = message.expect("a message decodes as what it was encoded from");
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .skip_default_fields(false)
            .stringify_64_bit_integers(false);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .expect("a message has only what JSON has")
    }
}
