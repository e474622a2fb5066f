//! Where a layer is built: a [`Builder`] that knows the storage type and the checkpoint prefix.
//!
//! [`Net::at`] opens a scope, so one name says three things: the scope of the values, the prefix of
//! the parameters' checkpoint names, and (through [`module_output`]) what the module returned. It
//! is what upstream calls a module path: `blocks.3.attn`.

use std::ops::{Deref, DerefMut};

use ops::{Builder, DType, Error, Graph, TensorType, ValueId};

/// The result of building a layer.
pub(crate) type Value = Result<ValueId, Error>;

/// A [`Builder`] inside one module of a model.
#[derive(Debug)]
pub struct Net<'a> {
    builder: &'a mut Builder,
    dtype: DType,
    path: String,
}

impl<'a> Net<'a> {
    /// The outermost module. Parameters are declared in `dtype`, as are activations.
    pub fn new(builder: &'a mut Builder, dtype: DType) -> Net<'a> {
        Net { builder, dtype, path: String::new() }
    }

    /// Builds the sub-module `name`.
    pub fn at<T>(&mut self, name: &str, body: impl FnOnce(&mut Net<'_>) -> T) -> T {
        let path = self.join(name);
        let dtype = self.dtype;
        self.builder.scope(name, |builder| body(&mut Net { builder, dtype, path }))
    }

    /// Storage type of activations and parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The parameter `name` of this module.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Value {
        let ty = TensorType::new(self.dtype, shape)?;
        let name = self.join(name);
        Ok(self.builder.param(&name, ty))
    }

    /// `x` in the storage type.
    pub fn stored(&mut self, x: ValueId) -> Value {
        self.cast_to(x, self.dtype)
    }

    /// `x` in `dtype`; `x` itself if it has that type.
    pub fn cast_to(&mut self, x: ValueId, dtype: DType) -> Value {
        if self.ty(x).dtype() == dtype { Ok(x) } else { self.cast(x, dtype) }
    }

    /// The last dim of `x`.
    pub fn width(&self, x: ValueId) -> usize {
        self.shape(x).last().copied().unwrap_or(1)
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

impl Deref for Net<'_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        self.builder
    }
}

impl DerefMut for Net<'_> {
    fn deref_mut(&mut self) -> &mut Builder {
        self.builder
    }
}

/// What the module with this path returned: the last value appended inside it. The path is that of
/// upstream's module, below the scope in which the model was built. For graphs as built; passes
/// move values.
pub fn module_output(graph: &Graph, path: &str) -> Option<ValueId> {
    graph.values().rfind(|&value| {
        let scope = &*graph.node(value).scope;
        scope.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Names and shapes of the graph's parameters, in program order.
pub fn param_shapes(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    graph
        .params()
        .map(|(value, name)| (name.to_string(), graph.ty(value).shape().to_vec()))
        .collect()
}
