//! Kernels made wrong in one place: the checks, or the numbers, notice every one of them.

mod common;

use common::{Arg, Session, difference, from_bf16, noise, product, ptx, to_bf16};
use emulator::{Arrival, Device, Error, Module, Mutation, Options, Order, Stats};
use std::collections::BTreeSet;

/// What a kernel did if its numbers are right, nothing if they are wrong, or why it was stopped.
type Outcome = Result<Option<Stats>, Error>;

/// Orders and arrivals that together show each mutation.
fn modes() -> Vec<Options> {
    [(Order::Forward, Arrival::Late), (Order::Reverse, Arrival::Early)]
        .map(|(order, arrival)| Options { order, arrival, ..Options::default() })
        .to_vec()
}

fn row_sum(module: &Module, options: &Options) -> Outcome {
    let x = noise(2 * 1500, 1);
    let mut s = Session::of(module);
    let (px, out) = (s.upload_f32(&x), s.alloc(8));
    let stats = s.launch("row_sum", ([2, 1, 1], 128, 0), &[px, out, Arg::U32(1500)], options)?;
    let expected: Vec<f64> =
        x.chunks(1500).map(|row| row.iter().map(|&v| f64::from(v)).sum()).collect();
    Ok((difference(&s.f32s(out, 2), &expected) < 1e-4).then_some(stats))
}

fn gemm(module: &Module, options: &Options) -> Outcome {
    let [m, n, k] = [64, 64, 96];
    let round = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().map(|v| from_bf16(to_bf16(v))).collect()
    };
    let (a, b) = (round(noise(m * k, 2)), round(noise(k * n, 3)));
    let bits = |values: &[f32]| values.iter().map(|&v| to_bf16(v)).collect::<Vec<u16>>();
    let mut s = Session::of(module);
    let (pa, pb, c) =
        (s.upload_u16(&bits(&a)), s.upload_u16(&bits(&b)), s.alloc(4 * (m * n) as u64));
    let args = [pa, pb, c, Arg::U32(n as u32), Arg::U32(k as u32)];
    let stats =
        s.launch("gemm_bf16", ([1, 1, 1], 128, 2 * 2 * (64 * 40 + 32 * 72)), &args, options)?;
    let Arg::Pointer(address) = c else { unreachable!() };
    if s.device.first_unwritten(address, 4 * (m * n) as u64).is_some() {
        return Ok(None);
    }
    let error = difference(&s.f32s(c, m * n), &product(&a, &b, [m, n, k]));
    Ok((error < 1e-4).then_some(stats))
}

/// How many mutations of lines that the kernel reaches were tried, and those that no mode notices.
fn unnoticed(
    text: &str,
    entry: &str,
    run: fn(&Module, &Options) -> Outcome,
) -> (usize, Vec<String>) {
    let module = Module::parse(text).expect("the entry and the place exist");
    let mut reached = BTreeSet::new();
    for options in modes() {
        let stats = run(&module, &options).unwrap_or_else(|e| panic!("{e}"));
        reached.extend(stats.expect("the numbers are right").reached_lines);
    }
    let line = |mutation: &Mutation| {
        module.mutation_line(entry, *mutation).expect("the entry and the place exist")
    };
    let mut mutations = module.mutations(entry).expect("the entry and the place exist");
    mutations.retain(|mutation| reached.contains(&line(mutation)));
    let is_missed = |mutation: &&Mutation| {
        let mutated = module.mutated(entry, **mutation).expect("the entry and the place exist");
        modes().iter().all(|options| matches!(run(&mutated, options), Ok(Some(_))))
    };
    let missed = mutations.iter().filter(is_missed);
    let missed = missed.map(|mutation| format!("{mutation:?} in line {}", line(mutation)));
    (mutations.len(), missed.collect())
}

#[test]
fn every_mutation_of_the_row_sum_is_noticed() {
    let (n, missed) = unnoticed(&ptx("row_sum.sm_80.ptx"), "row_sum", row_sum);
    // The last levels of the tree are within warp 0, where lockstep needs no barrier here: a device may differ.
    let within_a_warp = missed.iter().filter(|name| name.starts_with("RemoveBarrier")).count();
    assert_eq!(within_a_warp, missed.len(), "of {n}: {missed:?}");
    assert!(n > 25 && within_a_warp <= 6, "of {n}: {missed:?}");
}

#[test]
fn every_mutation_of_the_pipelined_product_is_noticed() {
    let (n, missed) = unnoticed(&ptx("gemm.sm_80.ptx"), "gemm_bf16", gemm);
    assert!(n > 15, "{n}");
    assert_eq!(missed, [""; 0], "of {n}");
}

#[test]
fn a_mutation_that_does_not_exist_is_an_error() {
    let module = Module::parse(&ptx("row_sum.sm_80.ptx")).unwrap();
    assert!(module.mutated("row_sum", Mutation::RemoveWait(0)).is_err());
    assert!(module.mutated("other", Mutation::RemoveBarrier(0)).is_err());
    let mutated = module.mutated("row_sum", Mutation::RemoveBarrier(0)).unwrap();
    let count = |m: &Module| m.mutations("row_sum").unwrap().len();
    assert_eq!(count(&mutated) + 1, count(&module));
    Device::new().load(&mutated).unwrap();
}
