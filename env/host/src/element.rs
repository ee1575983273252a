//! A small tree of XML elements: libvirt's documents are read once and then asked questions.

use std::ops::Range;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::error::{HostError, HostResult};

/// libvirt's domain XML is nested about eight deep; this bounds a hostile one.
const MAX_DEPTH: usize = 64;

/// An element with its attributes, children and text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Element {
    /// Name with its prefix, as written.
    pub(crate) name: String,
    attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    pub(crate) text: String,
    /// Where its first tag stands in the document, bytes.
    pub(crate) tag: Range<usize>,
    /// Where it ends in the document: after its last tag.
    pub(crate) end: usize,
}

impl Element {
    /// The root element of a document.
    pub(crate) fn parse(xml: &str) -> HostResult<Self> {
        let error = || HostError::parse("domain XML", xml);
        let mut reader = Reader::from_str(xml);
        let mut open = vec![Self::default()];
        loop {
            let start = reader.buffer_position() as usize;
            match reader.read_event().map_err(|_| error())? {
                Event::Start(tag) if open.len() <= MAX_DEPTH => {
                    let span = start..reader.buffer_position() as usize;
                    open.push(Self::from_start(&tag, span)?);
                }
                Event::Start(_) => return Err(error()),
                Event::Empty(tag) => {
                    let span = start..reader.buffer_position() as usize;
                    let element = Self::from_start(&tag, span)?;
                    open.last_mut().ok_or_else(error)?.children.push(element);
                }
                Event::End(_) => {
                    let mut element = open.pop().ok_or_else(error)?;
                    element.end = reader.buffer_position() as usize;
                    open.last_mut().ok_or_else(error)?.children.push(element);
                }
                Event::Text(text) => {
                    let text = text.decode().map_err(|_| error())?;
                    open.last_mut().ok_or_else(error)?.text += text.trim();
                }
                Event::Eof => break,
                _ => {}
            }
        }
        match open.as_mut_slice() {
            [document] => document.children.pop().ok_or_else(error),
            _ => Err(error()),
        }
    }

    fn from_start(start: &BytesStart<'_>, tag: Range<usize>) -> HostResult<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut element = Self {
            name: text(start.name().as_ref()),
            end: tag.end,
            tag,
            ..Self::default()
        };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|_| HostError::parse("domain XML", &element.name))?;
            let value = attribute
                .unescape_value()
                .map_err(|_| HostError::parse("domain XML", &element.name))?;
            element
                .attributes
                .push((text(attribute.key.as_ref()), value.into_owned()));
        }
        Ok(element)
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// All attributes in the order of the document.
    pub(crate) fn attributes(&self) -> &[(String, String)] {
        &self.attributes
    }

    /// The first child of this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub(crate) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The first element below at the end of a path of names.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter()
            .try_fold(self, |element, name| element.child(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_children_and_text_are_found() {
        let root = Element::parse("<a x='1 &lt; 2'><b/><b><c>text</c></b></a>").unwrap();
        assert_eq!(root.attribute("x"), Some("1 < 2"));
        assert_eq!(root.children("b").count(), 2);
        assert_eq!(
            root.children("b").nth(1).unwrap().child("c").unwrap().text,
            "text"
        );
    }

    #[test]
    fn an_element_knows_where_it_stands() {
        let xml = "<a>\n  <b x='1'/> text <c>\n</c></a>";
        let root = Element::parse(xml).unwrap();
        let (b, c) = (root.child("b").unwrap(), root.child("c").unwrap());
        assert_eq!(&xml[b.tag.clone()], "<b x='1'/>");
        assert_eq!(&xml[b.tag.start..b.end], "<b x='1'/>");
        assert_eq!(&xml[c.tag.start..c.end], "<c>\n</c>");
        assert_eq!(&xml[root.tag.start..root.end], xml);
    }

    #[test]
    fn a_broken_or_endless_document_is_refused() {
        assert!(Element::parse("<a><b></a>").is_err());
        assert!(Element::parse("").is_err());
        assert!(Element::parse(&"<a>".repeat(1000)).is_err());
    }
}
