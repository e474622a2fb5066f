//! Measured choices: which way was fastest for which product.
//!
//! The cost model of [`super::gemm`] chooses tiles where nothing was measured. A table of [`Tiles`], which
//! `kino tune` makes on a device, overrides it, product by product. Its text has a line for each product,
//! `sm_90a matmul 1 x 12480 x 4608 x 1152 = group 128x256x64 4`: generation, kind, batch, rows, columns,
//! depth; way, tile, stages. `, cublaslt` behind it says that the library was faster than this, where the product is
//! plain ([`PlainProduct`]). `#` begins a comment.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::gemm::{Gemm, Left, Method, Tile};
use super::plain::PlainProduct;
use super::{CudaKernel, Function, Gpu};

/// A product, as far as it decides which tile is fast.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Product {
    /// The generation of devices.
    pub gpu: Gpu,
    /// Whether rows are what a window sees: a convolution.
    pub is_conv: bool,
    /// Products of the same dims.
    pub batch: u32,
    /// Rows of one.
    pub rows: u32,
    /// Columns of one.
    pub columns: u32,
    /// Length of its sums.
    pub depth: u32,
}

impl Product {
    /// That of a launch on `gpu`; `None` where tiles are no choice.
    pub fn of(function: &Function, gpu: Gpu) -> Option<(Product, Method)> {
        let gemm = match function {
            Function::Matmul(matmul) => &matmul.0,
            Function::Conv(conv) => &conv.0,
            _ => return None,
        };
        let is_choice = matches!(gemm.method, Method::Tensor(_) | Method::Group(_));
        is_choice.then(|| (Product::of_gemm(gemm, gpu), gemm.method))
    }

    pub(super) fn of_gemm(gemm: &Gemm, gpu: Gpu) -> Product {
        Product {
            gpu,
            is_conv: matches!(gemm.left, Left::Windows(_)),
            batch: gemm.n_batch(),
            rows: gemm.n_rows(),
            columns: gemm.columns,
            depth: gemm.depth,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Product { gpu, is_conv, batch, rows, columns, depth } = self;
        let kind = if *is_conv { "conv" } else { "matmul" };
        write!(f, "{} {kind} {batch} x {rows} x {columns} x {depth}", gpu.code_name())
    }
}

/// What follows a way where the library was faster.
const LIBRARY: &str = "cublaslt";

/// What was found fastest for one product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Choice {
    /// The fastest kernel.
    method: Method,
    /// Whether the library is faster, where it can be used.
    prefers_library: bool,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { method, prefers_library } = self;
        let more = if *prefers_library { format!(", {LIBRARY}") } else { String::new() };
        write!(f, "{method}{more}")
    }
}

/// The way of each product that is not left to the cost model.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tiles {
    measured: BTreeMap<Product, Choice>,
    /// The way of all others, where a block of it fits.
    trial: Option<Method>,
}

impl Tiles {
    /// Every way to compute a product of halves on `gpu`, each of which [`Tiles::trial`] can try.
    pub fn methods(gpu: Gpu) -> Vec<Method> {
        let groups = Tile::GROUPS.into_iter().filter(|_| gpu >= Gpu(90)).map(Method::Group);
        let all = Tile::ALL.into_iter().map(Method::Tensor).chain(groups);
        all.filter(|method| method.tile().is_some_and(|tile| tile.residents(gpu) > 0)).collect()
    }

    /// The same way for every product.
    pub fn trial(method: Method) -> Tiles {
        Tiles { measured: BTreeMap::new(), trial: Some(method) }
    }

    /// The way of `product`, where there is one.
    pub fn method(&self, product: &Product) -> Option<Method> {
        let measured = self.measured.get(product).map(|choice| choice.method);
        let method = measured.or(self.trial)?;
        Tiles::methods(product.gpu).contains(&method).then_some(method)
    }

    /// Whether the library was measured to be faster for plain products of these dims.
    pub fn prefers_library(&self, product: &Product) -> bool {
        self.measured.get(product).is_some_and(|choice| choice.prefers_library)
    }

    /// How many products it has.
    pub fn len(&self) -> usize {
        self.measured.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.measured.is_empty()
    }

    /// Takes over what `other` has.
    pub fn extend(&mut self, other: Tiles) {
        self.measured.extend(other.measured);
    }
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.measured.iter().try_for_each(|(product, choice)| writeln!(f, "{product} = {choice}"))
    }
}

impl FromStr for Tiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Tiles, String> {
        let mut tiles = Tiles::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = |reason: &str| format!("line {}, `{line}`: {reason}", number + 1);
            let (product, method, library) = parse_line(line).ok_or_else(|| {
                wrong("expected `sm_90a matmul 1 x 12480 x 4608 x 1152 = group 128x256x64 4`")
            })?;
            let known = Tiles::methods(product.gpu);
            let method =
                known.iter().find(|known| known.to_string() == method).ok_or_else(|| {
                    let known: Vec<String> = known.iter().map(Method::to_string).collect();
                    wrong(&format!("there is no such way; expected one of {}", known.join(", ")))
                })?;
            let prefers_library = library.is_some();
            if library.is_some_and(|name| name != LIBRARY) {
                return Err(wrong("after the way, only `, cublaslt` is known"));
            }
            let choice = Choice { method: *method, prefers_library };
            if tiles.measured.insert(product, choice).is_some() {
                return Err(wrong("this product has a line already"));
            }
        }
        Ok(tiles)
    }
}

/// The product of a line, the name of its way, and what follows it after a comma.
fn parse_line(line: &str) -> Option<(Product, String, Option<&str>)> {
    let (product, choice) = line.split_once('=')?;
    let (method, library) = match choice.split_once(',') {
        Some((method, library)) => (method, Some(library.trim())),
        None => (choice, None),
    };
    let mut words = product.split_whitespace();
    let gpu = Gpu::from_name(words.next()?)?;
    let is_conv = match words.next()? {
        "matmul" => false,
        "conv" => true,
        _ => return None,
    };
    let dims: String = words.collect();
    let dims: Option<Vec<u32>> = dims.split('x').map(|dim| dim.parse().ok()).collect();
    let &[batch, rows, columns, depth] = dims?.as_slice() else { return None };
    let words: Vec<&str> = method.split_whitespace().collect();
    Some((Product { gpu, is_conv, batch, rows, columns, depth }, words.join(" "), library))
}

/// Times of trials, of which the fastest are kept.
#[derive(Debug, Default)]
pub struct Tuning {
    /// Times of the steps of each product.
    times: BTreeMap<Product, Ways<Method>>,
    /// Those of steps that the library can do as well.
    plain: BTreeMap<Product, Ways<Method>>,
    /// And of the library.
    library: BTreeMap<Product, Ways<()>>,
}

/// Ways in the order in which they were tried, with the time and number of their steps.
type Ways<W> = Vec<(W, Duration, u32)>;

/// Adds the time of a step that went this way.
fn note<W: PartialEq>(ways: &mut Ways<W>, way: W, time: Duration) {
    match ways.iter_mut().find(|(known, ..)| *known == way) {
        Some((_, sum, count)) => {
            *sum += time;
            *count += 1;
        }
        None => ways.push((way, time, 1)),
    }
}

/// The mean time of the steps of a way.
fn mean<W>((_, sum, count): &(W, Duration, u32)) -> Duration {
    *sum / *count
}

/// What was measured of one product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// The product.
    pub product: Product,
    /// The fastest way.
    pub method: Method,
    /// Its mean time in a step, with what else the step launches.
    pub time: Duration,
    /// The mean time of the slowest way.
    pub slowest: Duration,
    /// What the library takes, where it was measured.
    pub library: Option<Library>,
}

/// Mean times of those steps of a product that are plain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Library {
    /// With the library.
    pub time: Duration,
    /// With the kernel that is fastest for all steps of the product.
    pub own: Duration,
}

impl Library {
    /// Whether it is faster than the kernel.
    pub fn is_faster(&self) -> bool {
        self.time < self.own
    }
}

impl Tuning {
    /// Adds the time of a step that ran `kernel` on `gpu`.
    pub fn add(&mut self, kernel: &CudaKernel, gpu: Gpu, time: Duration) {
        for launch in &kernel.launches {
            let Some((product, method)) = Product::of(&launch.function, gpu) else { continue };
            note(self.times.entry(product).or_default(), method, time);
            if PlainProduct::of(launch).is_some() {
                note(self.plain.entry(product).or_default(), method, time);
            }
        }
    }

    /// Adds the time of a step in which the library computed the plain products of `kernel`.
    pub fn add_library(&mut self, kernel: &CudaKernel, gpu: Gpu, time: Duration) {
        let plain = kernel.launches.iter().filter(|launch| PlainProduct::of(launch).is_some());
        for (product, _) in plain.filter_map(|launch| Product::of(&launch.function, gpu)) {
            note(self.library.entry(product).or_default(), (), time);
        }
    }

    /// What is known of the library and of `method` for the same steps.
    fn library(&self, product: &Product, method: Method) -> Option<Library> {
        let own = self.plain.get(product)?.iter().find(|(way, ..)| *way == method)?;
        let library = self.library.get(product)?.first()?;
        Some(Library { time: mean(library), own: mean(own) })
    }

    /// The fastest way of each product, in order. Of equal ones, that which was tried first.
    pub fn measured(&self) -> Vec<Measured> {
        let rows = self.times.iter().filter_map(|(&product, ways)| {
            let best = ways.iter().min_by_key(|way| mean(way))?;
            let slowest = ways.iter().map(mean).max()?;
            let (method, library) = (best.0, self.library(&product, best.0));
            Some(Measured { product, method, time: mean(best), slowest, library })
        });
        rows.collect()
    }

    /// As a table.
    pub fn tiles(&self) -> Tiles {
        let rows = self.measured().into_iter().map(|row| {
            let prefers_library = row.library.is_some_and(|library| library.is_faster());
            (row.product, Choice { method: row.method, prefers_library })
        });
        Tiles { measured: rows.collect(), trial: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(rows: u32) -> Product {
        Product { gpu: Gpu(90), is_conv: false, batch: 1, rows, columns: 1152, depth: 4608 }
    }

    #[test]
    fn tables_are_read_as_they_are_written() {
        for gpu in Gpu::ALL {
            let methods = Tiles::methods(gpu);
            assert!(methods.len() >= 6, "{gpu}");
            let rows = methods.into_iter().zip(1..).map(|(method, rows)| {
                let choice = Choice { method, prefers_library: rows % 3 == 0 };
                (Product { gpu, is_conv: rows % 2 == 0, ..product(rows) }, choice)
            });
            let tiles = Tiles { measured: rows.collect(), trial: None };
            assert_eq!(tiles.to_string().parse::<Tiles>().unwrap(), tiles);
        }
        let text = "# a comment\n\nsm_80 matmul 1x64x64x64 = tensor 64x64x64  4 # fast\n";
        assert_eq!(
            text.parse::<Tiles>().unwrap().to_string(),
            "sm_80 matmul 1 x 64 x 64 x 64 = tensor 64x64x64 4\n"
        );
        let tiles: Tiles = "sm_80 matmul 1x64x64x64 = tensor 64x64x64 4,cublaslt".parse().unwrap();
        assert_eq!(
            tiles.to_string(),
            "sm_80 matmul 1 x 64 x 64 x 64 = tensor 64x64x64 4, cublaslt\n"
        );
        let known = Product { gpu: Gpu(80), columns: 64, depth: 64, ..product(64) };
        assert!(tiles.prefers_library(&known) && !tiles.prefers_library(&product(64)));
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, part) in [
            ("sm_80 matmul 1x64x64x64", "line 1"),
            ("\nsm_70 matmul 1x64x64x64 = tensor 64x64x64 4", "line 2"),
            ("sm_80 product 1x64x64x64 = tensor 64x64x64 4", "expected `sm_90a matmul"),
            ("sm_80 matmul 64x64x64 = tensor 64x64x64 4", "expected `sm_90a matmul"),
            ("sm_80 matmul 1x64x64x-1 = tensor 64x64x64 4", "expected `sm_90a matmul"),
            ("sm_80 matmul 1x64x64x64 = group 128x256x64 4", "one of tensor"),
            ("sm_80 matmul 1x64x64x64 = tensor 64x64x64 9", "one of tensor"),
            ("sm_80 matmul 1x64x64x64 = cublaslt", "one of tensor"),
            ("sm_80 matmul 1x64x64x64 = tensor 64x64x64 4, cublas", "only `, cublaslt` is known"),
            (
                "sm_80 matmul 1x1x1x1 = tensor 64x64x64 4\nsm_80 matmul 1x1x1x1 = tensor 64x64x64 4",
                "line 2",
            ),
        ] {
            let message = text.parse::<Tiles>().unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn what_a_generation_cannot_run_is_left_to_the_cost_model() {
        let group = Tiles::trial(Method::Group(Tile::GROUPS[0]));
        assert!(group.method(&product(64)).is_some());
        assert_eq!(group.method(&Product { gpu: Gpu(80), ..product(64) }), None);
    }
}
