use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions,
    ServiceDescriptorProto,
};

use super::v1::FILE_DESCRIPTOR_SET;

fn our_files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file
        .into_iter()
        .filter(|file| file.package() == "blkpilot.v1")
        .collect()
}

/// A walk through a file that notes what has no comment. Paths are those of `SourceCodeInfo`: field
/// numbers of descriptor.proto and indices in turn.
struct Walk {
    explained: BTreeSet<Vec<i32>>,
    bare: Vec<String>,
}

impl Walk {
    fn over(file: &FileDescriptorProto) -> Self {
        let info = file.source_code_info.as_ref().unwrap();
        let explained = info.location.iter().filter(|location| {
            let comment = location.leading_comments.as_deref();
            comment.is_some_and(|text| !text.trim().is_empty())
        });
        let mut walk = Self {
            explained: explained.map(|location| location.path.clone()).collect(),
            bare: vec![],
        };
        for (i, service) in (0..).zip(&file.service) {
            walk.service(&[6, i], service);
        }
        for (i, kind) in (0..).zip(&file.enum_type) {
            walk.kind(&[5, i], "", kind);
        }
        for (i, message) in (0..).zip(&file.message_type) {
            walk.message(&[4, i], "", message);
        }
        walk
    }

    fn note(&mut self, path: &[i32], name: String) {
        if !self.explained.contains(path) {
            self.bare.push(name);
        }
    }

    fn service(&mut self, path: &[i32], service: &ServiceDescriptorProto) {
        self.note(path, service.name().to_owned());
        for (i, method) in (0..).zip(&service.method) {
            let name = format!("{}.{}", service.name(), method.name());
            self.note(&[path, &[2, i]].concat(), name);
        }
    }

    fn kind(&mut self, path: &[i32], within: &str, kind: &EnumDescriptorProto) {
        let name = format!("{within}{}", kind.name());
        self.note(path, name.clone());
        for (i, value) in (0..).zip(&kind.value) {
            self.note(
                &[path, &[2, i]].concat(),
                format!("{name}.{}", value.name()),
            );
        }
    }

    fn message(&mut self, path: &[i32], within: &str, message: &DescriptorProto) {
        let name = format!("{within}{}", message.name());
        self.note(path, name.clone());
        for (i, field) in (0..).zip(&message.field) {
            self.note(
                &[path, &[2, i]].concat(),
                format!("{name}.{}", field.name()),
            );
        }
        let within = format!("{name}.");
        for (i, kind) in (0..).zip(&message.enum_type) {
            self.kind(&[path, &[4, i]].concat(), &within, kind);
        }
        // The entries of a map are made by the compiler.
        let is_map = |nested: &DescriptorProto| {
            let options = nested.options.as_ref();
            options.is_some_and(MessageOptions::map_entry)
        };
        for (i, nested) in (0..).zip(&message.nested_type) {
            if !is_map(nested) {
                self.message(&[path, &[3, i]].concat(), &within, nested);
            }
        }
    }
}

#[test]
fn every_service_method_message_field_enum_and_value_is_explained() {
    let bare: Vec<String> = our_files()
        .iter()
        .flat_map(|file| Walk::over(file).bare)
        .collect();
    assert!(bare.is_empty(), "without a comment: {}", bare.join(", "));
}

#[test]
fn a_field_or_value_without_a_comment_is_found_wherever_it_is_nested() {
    let files = protox::Compiler::new(["src/testdata"])
        .unwrap()
        .include_source_info(true)
        .open_file("bare.proto")
        .unwrap()
        .file_descriptor_set();
    assert_eq!(
        Walk::over(&files.file[0]).bare,
        [
            "Service.Bare",
            "Kind.KIND_BARE",
            "Outer.bare",
            "Outer.Inner.bare",
            "Outer.Inner.Deep.DEEP_BARE",
            "Bare"
        ]
    );
}

#[test]
fn the_first_value_of_an_enum_means_unspecified() {
    for file in our_files() {
        let nested = file
            .message_type
            .iter()
            .flat_map(|message| &message.enum_type);
        for kind in file.enum_type.iter().chain(nested) {
            assert!(
                kind.value[0].name().ends_with("UNSPECIFIED"),
                "{}",
                kind.name()
            );
        }
    }
}

/// `buf lint` would want it of enums inside messages too, where nothing needs it (buf.yaml).
#[test]
fn the_values_of_an_enum_outside_messages_begin_with_its_name() {
    for file in our_files() {
        for kind in &file.enum_type {
            let prefix = screaming(kind.name());
            for value in &kind.value {
                let name = value.name();
                assert!(name.starts_with(&prefix), "{name} without {prefix}");
            }
        }
    }
}

/// `HostState` as `HOST_STATE_`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text + "_"
}

#[test]
fn what_reflection_serves_is_complete_without_a_network() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let brought: BTreeSet<&str> = set.file.iter().map(FileDescriptorProto::name).collect();
    for file in &set.file {
        for import in &file.dependency {
            assert!(
                brought.contains(import.as_str()),
                "{} imports {import}",
                file.name()
            );
        }
    }
}
