//! Plain products of every form, a graph each: what a library can compute as well as a kernel.

use ops::{Builder, DType, Error, TensorType, ValueId};

use crate::sites::Site;

/// A graph being made, of inputs and weights of one type.
#[derive(Debug)]
pub struct Typed {
    /// The graph.
    pub b: Builder,
    dtype: DType,
}

impl Typed {
    /// An empty graph of values of type `dtype`.
    pub fn new(dtype: DType) -> Typed {
        Typed { b: Builder::new("product"), dtype }
    }

    fn ty(&self, shape: &[usize]) -> TensorType {
        TensorType::new(self.dtype, shape).expect("a valid shape")
    }

    /// An input.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let ty = self.ty(shape);
        self.b.input(name, ty)
    }

    /// A weight.
    pub fn param(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let ty = self.ty(shape);
        self.b.param(name, ty)
    }

    /// `x w^T` of `[rows.., 48]` and `[72, 48]`.
    ///
    /// # Errors
    /// As the builder's.
    pub fn linear(&mut self, rows: &[usize]) -> Result<ValueId, Error> {
        let x = self.input("x", &[rows, &[48]].concat());
        let w = self.param("w", &[72, 48]);
        self.b.matmul(x, w, false, true)
    }
}

/// All of them, in halves of type `dtype`. Sums of the others are rounded once, those in f32 not at all.
pub fn sites(dtype: DType) -> Vec<Site> {
    let mut sites = vec![];
    let mut add = |form: &str, make: &dyn Fn(&mut Typed) -> Result<ValueId, Error>| {
        let mut graph = Typed::new(dtype);
        let output = make(&mut graph).unwrap_or_else(|error| panic!("{form}: {error}"));
        let name = format!("plain-{dtype}-{form}");
        sites.push(Site { name, graph: graph.b.finish(&[output]), limit: 3e-3 });
    };
    add("weight", &|g| g.linear(&[40]));
    add("bias", &|g| {
        let y = g.linear(&[2, 20])?;
        let bias = g.param("bias", &[1, 1, 72]);
        g.b.add(y, bias)
    });
    add("residual", &|g| {
        let y = g.linear(&[40])?;
        let residual = g.input("residual", &[40, 72]);
        g.b.add(residual, y)
    });
    add("bias-and-residual", &|g| {
        let y = g.linear(&[40])?;
        let (bias, residual) = (g.param("bias", &[1, 72]), g.input("residual", &[40, 72]));
        let y = g.b.add(y, bias)?;
        g.b.add(y, residual)
    });
    add("behind-a-norm", &|g| {
        let x = g.input("x", &[40, 48]);
        let x = g.b.layer_norm(x, 1e-5)?;
        let w = g.param("w", &[72, 48]);
        g.b.matmul(x, w, false, true)
    });
    add("packed-weight", &|g| {
        let (x, w) = (g.input("x", &[40, 48]), g.param("w", &[48, 72]));
        g.b.matmul(x, w, false, false)
    });
    for (form, flips) in [("x-y", [false, false]), ("xt-y", [true, false]), ("xt-yt", [true, true])]
    {
        add(form, &|g| {
            let x = g.input("x", &if flips[0] { [48, 40] } else { [40, 48] });
            let y = g.input("y", &if flips[1] { [72, 48] } else { [48, 72] });
            g.b.matmul(x, y, flips[0], flips[1])
        });
    }
    add("batch", &|g| {
        let (x, y) = (g.input("x", &[2, 3, 24, 16]), g.input("y", &[2, 3, 40, 16]));
        g.b.matmul(x, y, false, true)
    });
    add("wider-rows", &|g| {
        let x = g.input("x", &[40, 96]);
        let x = g.b.slice(x, &[0, 32], &[40, 80], &[1; 2])?;
        let w = g.param("w", &[72, 48]);
        g.b.matmul(x, w, false, true)
    });
    add("some-rows", &|g| {
        let x = g.input("x", &[3, 20, 48]);
        let x = g.b.slice(x, &[0, 2, 0], &[3, 18, 48], &[1; 3])?;
        let w = g.param("w", &[72, 48]);
        g.b.matmul(x, w, false, true)
    });
    add("f32", &|g| {
        let y = g.linear(&[40])?;
        g.b.cast(y, DType::F32)
    });
    sites
}
