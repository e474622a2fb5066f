//! Which steps of an engine's program a library can compute as well: their plain products, alike ones together.

use std::collections::BTreeSet;

use engine::{Product, Program, Step};
use serde_json::{Value, json};

use crate::plan::percent;
use crate::report::line;
use crate::units;

/// Plain products that differ in addresses only.
#[derive(Debug)]
struct Alike<'a> {
    product: &'a Product,
    /// Positions in the program.
    steps: Vec<usize>,
    /// Where in the model, numbers left out.
    scopes: BTreeSet<String>,
}

impl Alike<'_> {
    /// `1 x 6480 x 3456 x 1152 bf16 + bias`: batch, rows, columns, depth, types, what is added.
    fn name(&self) -> String {
        let Product { factors, sums, batch, rows, columns, depth, bias, residual, .. } =
            self.product;
        let mut name = format!("{batch} x {rows} x {columns} x {depth} {factors}");
        if factors != sums {
            name += &format!(" to {sums}");
        }
        for (is_added, what) in [(bias.is_some(), "bias"), (residual.is_some(), "residual")] {
            if is_added {
                name += &format!(" + {what}");
            }
        }
        name
    }

    fn flops(&self) -> u64 {
        self.product.flops().saturating_mul(self.steps.len() as u64)
    }
}

/// The plain products of a program, in the order of their first steps.
fn plain(program: &Program) -> Vec<Alike<'_>> {
    let mut all: Vec<Alike<'_>> = Vec::new();
    for (at, step) in program.steps.iter().enumerate() {
        for product in step.launches.iter().filter_map(|launch| launch.product.as_ref()) {
            let known = all.iter_mut().find(|alike| is_alike(alike.product, product));
            match known {
                Some(alike) => {
                    alike.steps.push(at);
                    alike.scopes.insert(pattern(step));
                }
                None => {
                    let scopes = BTreeSet::from([pattern(step)]);
                    all.push(Alike { product, steps: vec![at], scopes });
                }
            }
        }
    }
    all
}

/// Whether two products differ in what they read and write only.
fn is_alike(a: &Product, b: &Product) -> bool {
    let key = |product: &Product| {
        let Product { factors, sums, batch, rows, columns, depth, .. } = *product;
        let added = (product.bias.is_some(), product.residual.is_some());
        ((factors, sums), [batch, rows, columns, depth], added, product.is_faster)
    };
    key(a) == key(b)
}

/// `blocks.3.attn` as `blocks.*.attn`.
fn pattern(step: &Step) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts = step.scope.split('.').map(|part| if is_number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// For people: a total, and a line for each kind of product.
pub(crate) fn to_text(program: &Program) -> String {
    let mut text = String::new();
    let all = plain(program);
    let n_steps: usize = all.iter().map(|alike| alike.steps.len()).sum();
    if n_steps == 0 {
        return text;
    }
    let flops: u64 = all.iter().fold(0, |sum, alike| sum.saturating_add(alike.flops()));
    line(
        &mut text,
        format_args!(
            "  cublaslt could compute {} of {}, {} of the FLOPs, with up to {} beside the arena",
            n_steps,
            units::counted(program.steps.len(), "step"),
            percent(flops as f64, program.flops() as f64),
            units::bytes(program.workspace_bytes as f64)
        ),
    );
    for alike in &all {
        let scopes: Vec<&str> = alike.scopes.iter().map(String::as_str).collect();
        let faster = if alike.product.is_faster { ", measured to be faster" } else { "" };
        line(
            &mut text,
            format_args!(
                "    {:>4} times {:<44} {}{faster}",
                alike.steps.len(),
                alike.name(),
                scopes.join(", ")
            ),
        );
    }
    text
}

/// For programs.
pub(crate) fn to_json(program: &Program) -> Value {
    let all = plain(program);
    let products = all.iter().map(|alike| {
        json!({
            "product": alike.name(), "steps": alike.steps, "scopes": alike.scopes,
            "flops": alike.flops(), "is_faster": alike.product.is_faster,
        })
    });
    json!({
        "steps": all.iter().map(|alike| alike.steps.len()).sum::<usize>(),
        "flops": all.iter().fold(0u64, |sum, alike| sum.saturating_add(alike.flops())),
        "workspace_bytes": program.workspace_bytes,
        "products": products.collect::<Vec<_>>(),
    })
}
