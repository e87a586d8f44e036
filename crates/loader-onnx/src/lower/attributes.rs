//! Attributes of a node, by name and type.

use std::collections::HashMap;
use std::rc::Rc;

use super::fail::{Fail, Res, fail};
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{AttributeProto, GraphProto, SparseTensorProto, TensorProto};

/// The attributes of a call of a function, which attributes in its body may refer to.
pub(crate) type Environment<'a> = Rc<HashMap<&'a str, &'a AttributeProto>>;

/// The attributes of one node.
#[derive(Clone)]
pub(crate) struct Attributes<'a> {
    own: &'a [AttributeProto],
    /// The attributes of the function that the node is in, if it is in one.
    function: Option<Environment<'a>>,
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(own: &'a [AttributeProto], function: Option<Environment<'a>>) -> Attributes<'a> {
        Attributes { own, function }
    }

    /// The attribute of this name, references followed.
    pub(crate) fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        let own = self.own.iter().find(|attribute| attribute.name() == name)?;
        if own.ref_attr_name().is_empty() {
            return Some(own);
        }
        self.function.as_ref()?.get(own.ref_attr_name()).copied()
    }

    /// All attributes, references followed.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'a str, &'a AttributeProto)> {
        self.own.iter().filter_map(|own| Some((own.name(), self.get(own.name())?)))
    }

    /// What graphs within the node see.
    pub(crate) fn function(&self) -> Option<Environment<'a>> {
        self.function.clone()
    }

    fn typed(&self, name: &str, ty: AttributeType) -> Res<Option<&'a AttributeProto>> {
        let Some(attribute) = self.get(name) else { return Ok(None) };
        // Models of IR version 1 leave the type out.
        if attribute.r#type() == ty || attribute.r#type() == AttributeType::Undefined {
            return Ok(Some(attribute));
        }
        fail(format!(
            "attribute {name} is of type {}, it must be {}",
            attribute.r#type().as_str_name(),
            ty.as_str_name()
        ))
    }

    /// An integer, if it is there.
    pub(crate) fn int(&self, name: &str) -> Res<Option<i64>> {
        Ok(self.typed(name, AttributeType::Int)?.map(AttributeProto::i))
    }

    /// An integer, or its default.
    pub(crate) fn int_or(&self, name: &str, default: i64) -> Res<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A truth value: an integer that is not 0.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Res<bool> {
        Ok(self.int(name)?.map_or(default, |n| n != 0))
    }

    /// A count, or its default.
    pub(crate) fn count(&self, name: &str, default: usize) -> Res<usize> {
        match self.int(name)? {
            None => Ok(default),
            Some(n) => usize::try_from(n).map_err(|_| format!("attribute {name} is {n}").into()),
        }
    }

    /// A float, if it is there.
    pub(crate) fn float(&self, name: &str) -> Res<Option<f32>> {
        Ok(self.typed(name, AttributeType::Float)?.map(AttributeProto::f))
    }

    /// A float, or its default.
    pub(crate) fn float_or(&self, name: &str, default: f32) -> Res<f32> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// Integers, if they are there.
    pub(crate) fn ints(&self, name: &str) -> Res<Option<&'a [i64]>> {
        Ok(self.typed(name, AttributeType::Ints)?.map(|attribute| &*attribute.ints))
    }

    /// Counts (integers that are not negative), if they are there.
    pub(crate) fn counts(&self, name: &str) -> Res<Option<Vec<usize>>> {
        let Some(ints) = self.ints(name)? else { return Ok(None) };
        let wrong = |n: i64| Fail::from(format!("attribute {name} contains {n}"));
        ints.iter().map(|n| usize::try_from(*n).map_err(|_| wrong(*n))).collect::<Res<_>>().map(Some)
    }

    /// Floats, if they are there.
    pub(crate) fn floats(&self, name: &str) -> Res<Option<&'a [f32]>> {
        Ok(self.typed(name, AttributeType::Floats)?.map(|attribute| &*attribute.floats))
    }

    /// A text, if it is there.
    pub(crate) fn text(&self, name: &str) -> Res<Option<&'a str>> {
        let Some(attribute) = self.typed(name, AttributeType::String)? else { return Ok(None) };
        let text = std::str::from_utf8(attribute.s.as_deref().unwrap_or_default());
        text.map(Some).map_err(|_| format!("attribute {name} is not UTF-8").into())
    }

    /// A text, or its default.
    pub(crate) fn text_or(&self, name: &str, default: &'a str) -> Res<&'a str> {
        Ok(self.text(name)?.unwrap_or(default))
    }

    /// Texts, if they are there.
    pub(crate) fn texts(&self, name: &str) -> Res<Option<Vec<&'a str>>> {
        let Some(attribute) = self.typed(name, AttributeType::Strings)? else { return Ok(None) };
        let text = |bytes: &'a bytes::Bytes| std::str::from_utf8(bytes);
        let texts = attribute.strings.iter().map(text).collect::<Result<_, _>>();
        texts.map(Some).map_err(|_| format!("attribute {name} is not UTF-8").into())
    }

    /// A tensor, if it is there.
    pub(crate) fn tensor(&self, name: &str) -> Res<Option<&'a TensorProto>> {
        let Some(attribute) = self.typed(name, AttributeType::Tensor)? else { return Ok(None) };
        attribute.t.as_ref().map(Some).ok_or_else(|| missing(name))
    }

    /// A sparse tensor, if it is there.
    pub(crate) fn sparse_tensor(&self, name: &str) -> Res<Option<&'a SparseTensorProto>> {
        let Some(attribute) = self.typed(name, AttributeType::SparseTensor)? else { return Ok(None) };
        attribute.sparse_tensor.as_ref().map(Some).ok_or_else(|| missing(name))
    }

    /// A graph that must be there.
    pub(crate) fn graph(&self, name: &str) -> Res<&'a GraphProto> {
        let attribute = self.typed(name, AttributeType::Graph)?;
        attribute.and_then(|attribute| attribute.g.as_ref()).ok_or_else(|| missing(name))
    }

    /// An element type.
    pub(crate) fn dtype(&self, name: &str) -> Res<Option<core_tensor::DType>> {
        let Some(number) = self.int(name)? else { return Ok(None) };
        let number = i32::try_from(number).unwrap_or(-1);
        match crate::tensor::dtype(number)? {
            Some(dtype) => Ok(Some(dtype)),
            None => fail(format!("attribute {name}: strings are not supported")),
        }
    }
}

fn missing(name: &str) -> Fail {
    format!("attribute {name} is missing").into()
}
