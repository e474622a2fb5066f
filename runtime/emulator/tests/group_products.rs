//! `wgmma`: numbers for every layout and width, and what a kernel that uses it may do wrong.

mod common;

use common::{Session, fault, from_bf16, from_f16, noise, to_bf16, to_f16};
use emulator::{Arrival, Error, Fault, FaultKind, Module, Mutation, Options, Order, Stats};

/// Elements of a line that one product takes.
const STEP: usize = 16;

/// Operands in shared memory, lines of 64 rows and n columns, and the kernel that multiplies them.
#[derive(Clone, Copy)]
struct Case {
    n: usize,
    /// Bytes of a line of the pattern that is repeated: 16 is no swizzle.
    pitch: usize,
    element: &'static str,
}

impl Case {
    /// Elements of a line.
    fn depth(self) -> usize {
        if self.pitch == 16 { 48 } else { self.pitch / 2 }
    }

    /// Bytes from 16 bytes of a line to the next, where lines are not swizzled.
    fn leading(self) -> usize {
        128
    }

    /// Bytes from eight lines to the next eight.
    fn stride(self) -> usize {
        16 * self.depth()
    }

    fn right(self) -> usize {
        64 * 2 * self.depth()
    }

    fn bytes(self) -> usize {
        (64 + self.n) * 2 * self.depth()
    }

    /// Where element k of a line is, as the PTX ISA draws the layouts.
    fn place(self, line: usize, k: usize) -> usize {
        let (eight, row, copy) = (line / 8, line % 8, k / 8);
        let copy_at = match self.pitch {
            128 => row * 128 + (copy ^ row) * 16,
            64 => row * 64 + (copy ^ (row / 2)) * 16,
            32 => row * 32 + (copy ^ (row / 4)) * 16,
            _ => copy * self.leading() + row * 16,
        };
        eight * self.stride() + copy_at + k % 8 * 2
    }

    /// Bytes of a step along the depth.
    fn step_bytes(self) -> usize {
        if self.pitch == 16 { 2 * self.leading() } else { 2 * STEP }
    }

    /// The upper bits of descriptors: everything but the start.
    fn layout(self) -> u64 {
        let swizzle = match self.pitch {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        swizzle << 62 | (self.stride() as u64 / 16) << 32 | (self.leading() as u64 / 16) << 16
    }

    fn text(self) -> String {
        let Self { n, element, .. } = self;
        let (words, right, layout) = (self.bytes() / 4, self.right(), self.layout());
        let sums: Vec<String> = (0..n / 2).map(|i| format!("%f{i}")).collect();
        let sums = sums.join(",");
        let mut text = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n\
             .extern .shared .align 1024 .b8 smem[];\n\
             .visible .entry k(.param .u64 px, .param .u64 po)\n{{\n\
             .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %d<12>; .reg .f32 %f<{}>;\n\
             ld.param.u64 %d0, [px]; ld.param.u64 %d1, [po];\n\
             mov.u32 %r0, %tid.x; mov.u32 %r1, smem; mov.u32 %r2, %r0;\n\
             $copy:\n\
             setp.ge.u32 %p0, %r2, {words};\n@%p0 bra $copied;\n\
             mul.wide.u32 %d2, %r2, 4; add.u64 %d2, %d2, %d0;\n\
             shl.b32 %r3, %r2, 2; add.u32 %r3, %r3, %r1;\n\
             ld.global.u32 %r4, [%d2];\nst.shared.u32 [%r3], %r4;\n\
             add.u32 %r2, %r2, 128;\nbra $copy;\n\
             $copied:\n\
             fence.proxy.async;\n\
             bar.sync 0;\n\
             shr.u32 %r5, %r1, 4; cvt.u64.u32 %d3, %r5; or.b64 %d3, %d3, {layout};\n\
             add.u64 %d4, %d3, {};\n\
             setp.ne.u32 %p1, 0, 0; setp.eq.u32 %p2, 0, 0;\n",
            n / 2,
            right / 16,
        );
        for i in 0..n / 2 {
            text += &format!("mov.f32 %f{i}, 0f7fc00000;\n");
        }
        text += "wgmma.fence.sync.aligned;\n";
        for step in 0..self.depth() / STEP {
            let at = step * self.step_bytes() / 16;
            // The first product takes no sums, which are no numbers yet; the last one is subtracted.
            let pred = if step == 0 { "%p1" } else { "%p2" };
            let scale = if step > 0 && step + 1 == self.depth() / STEP { -1 } else { 1 };
            text += &format!(
                "add.u64 %d5, %d3, {at}; add.u64 %d6, %d4, {at};\n\
                 wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{element}.{element} {{{sums}}}, %d5, %d6, {pred}, {scale}, 1, 0, 0;\n"
            );
        }
        text += "wgmma.commit_group.sync.aligned;\n// between\nwgmma.wait_group.sync.aligned 0;\n";
        text += "mul.wide.u32 %d7, %r0, 4; add.u64 %d7, %d7, %d1;\n";
        for i in 0..n / 2 {
            text += &format!("st.global.f32 [%d7+{}], %f{i};\n", 512 * i);
        }
        text + "ret;\n}\n"
    }

    /// Numbers that are exact in 16 bits, and their sums in f32.
    fn operands(self) -> (Vec<f32>, Vec<u8>) {
        let values = noise((64 + self.n) * self.depth(), self.n as u32);
        let values: Vec<f32> = values.iter().map(|x| (x * 16.0).trunc() / 8.0).collect();
        let mut image = vec![0; self.bytes()];
        for (i, &x) in values.iter().enumerate() {
            let (line, k) = (i / self.depth(), i % self.depth());
            let at = match line.checked_sub(64) {
                None => self.place(line, k),
                Some(column) => self.right() + self.place(column, k),
            };
            let bits = if self.element == "bf16" { to_bf16(x) } else { to_f16(x) };
            let is_exact = [from_bf16(to_bf16(x)), from_f16(to_f16(x))] == [x; 2];
            assert!(is_exact, "{x} has no more bits than bf16");
            image[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        (values, image)
    }

    fn run(self, text: &str, options: &Options) -> Result<(Vec<f32>, Stats), Error> {
        let mut s = Session::of(&Module::parse(text)?);
        let x = s.upload(&self.operands().1);
        let out = s.alloc(64 * 4 * self.n as u64);
        let shape = ([1, 1, 1], 128, self.bytes() as u32);
        let stats = s.launch("k", shape, &[x, out], options)?;
        let stored = s.f32s(out, 64 * self.n);
        let mut found = vec![0.0; 64 * self.n];
        for (i, sums) in stored.chunks_exact(128).enumerate() {
            for (thread, &sum) in sums.iter().enumerate() {
                let (warp, lane) = (thread / 32, thread % 32);
                let row = 16 * warp + lane / 4 + i / 2 % 2 * 8;
                found[row * self.n + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum;
            }
        }
        Ok((found, stats))
    }

    fn expected(self) -> Vec<f32> {
        let (values, _) = self.operands();
        let depth = self.depth();
        let line = |line: usize| &values[line * depth..(line + 1) * depth];
        let sign = |k: usize| if k / STEP > 0 && k / STEP + 1 == depth / STEP { -1.0 } else { 1.0 };
        let sum = |i: usize, j: usize| -> f32 {
            line(i).iter().zip(line(64 + j)).enumerate().map(|(k, (x, y))| sign(k) * x * y).sum()
        };
        (0..64 * self.n).map(|place| sum(place / self.n, place % self.n)).collect()
    }
}

fn modes() -> Vec<Options> {
    let orders = [
        (Order::Forward, Arrival::Late),
        (Order::Reverse, Arrival::Early),
        (Order::Random(3), Arrival::Late),
    ];
    orders.map(|(order, arrival)| Options { order, arrival, ..Options::default() }).to_vec()
}

const CASE: Case = Case { n: 24, pitch: 128, element: "bf16" };

/// The fault of the case with one piece of its text replaced, in every mode.
fn faults(from: &str, to: &str) -> Vec<Fault> {
    let text = CASE.text();
    assert!(text.contains(from), "{from}");
    let text = text.replacen(from, to, 1);
    let outcomes = modes().into_iter().map(|options| CASE.run(&text, &options));
    outcomes.map(|outcome| fault(outcome.map(|(_, stats)| stats))).collect()
}

#[track_caller]
fn check_fault(from: &str, to: &str, kind: FaultKind, what: &str) {
    for fault in faults(from, to) {
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.what.contains(what), "{fault}");
    }
}

#[test]
fn every_layout_gives_the_numbers_of_the_scalar_product() {
    for n in [8, 40, 136, 256] {
        for pitch in [16, 32, 64, 128] {
            for element in ["bf16", "f16"] {
                let case = Case { n, pitch, element };
                let text = case.text();
                for options in modes() {
                    let (found, stats) =
                        case.run(&text, &options).unwrap_or_else(|e| panic!("{n} {pitch}: {e}"));
                    assert_eq!(found, case.expected(), "n {n}, pitch {pitch}, {element}");
                    assert_eq!(stats.multiply_adds as usize, 64 * n * case.depth());
                }
            }
        }
    }
}

#[test]
fn what_another_descriptor_would_read_differs() {
    // The test of layouts can fail: no layout reads what another one laid out.
    for (pitch, other) in [(128, 64), (64, 128), (64, 32), (32, 64)] {
        let (case, other) = (Case { pitch, ..CASE }, Case { pitch: other, ..CASE });
        let wrong = case.text().replace(
            &format!("or.b64 %d3, %d3, {}", case.layout()),
            &format!("or.b64 %d3, %d3, {}", case.layout() & !(3 << 62) | other.layout() & 3 << 62),
        );
        let outcome = case.run(&wrong, &Options::default());
        assert!(!outcome.is_ok_and(|(found, _)| found == case.expected()), "{pitch}");
    }
}

#[test]
fn sums_in_flight_are_nobody_elses() {
    for body in ["mov.f32 %f3, %f2;", "add.f32 %f0, %f0, %f0;", "st.global.f32 [%d1], %f11;"] {
        check_fault("// between", body, FaultKind::PendingProduct, "not been waited for");
    }
    // A group that is not committed, or that may stay open, is not waited for.
    let commit = "wgmma.commit_group.sync.aligned;\n";
    check_fault(commit, "", FaultKind::PendingProduct, "not been waited for");
    check_fault(
        "wait_group.sync.aligned 0",
        "wait_group.sync.aligned 1",
        FaultKind::PendingProduct,
        "",
    );
    // Other registers are free.
    let text = CASE.text().replace("// between", "mov.u32 %r7, %r6;");
    assert!(CASE.run(&text, &Options::default()).is_ok());
}

#[test]
fn a_fence_orders_registers_and_shared_memory() {
    let (lost, fence) = ("wgmma.fence.sync.aligned;", FaultKind::MissingFence);
    check_fault(lost, "", fence, "no wgmma.fence since");
    check_fault("fence.proxy.async;", "", fence, "fence.proxy.async");
    // Behind the barrier it is too late for what other warps wrote, as a fence of half a warp is for its other half.
    check_fault("fence.proxy.async;\nbar.sync 0;", "bar.sync 0;\nfence.proxy.async;", fence, "");
    let half = "setp.lt.u32 %p3, %r0, 16;\n@%p3 fence.proxy.async;";
    check_fault("fence.proxy.async;", half, fence, "of the whole warp");
    // A fence of another proxy or space does nothing for it.
    check_fault("fence.proxy.async;", "fence.proxy.async.global;", fence, "");
    let text = CASE.text().replace("fence.proxy.async;", "fence.proxy.async.shared::cta;");
    assert!(CASE.run(&text, &Options::default()).is_ok());
}

#[test]
fn memory_must_be_there() {
    let fault = &faults("bar.sync 0;", "")[0];
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::NeverWritten), "{fault}");
    let words = format!("%r2, {}", CASE.bytes() / 4);
    check_fault(&words, "%r2, 900", FaultKind::NeverWritten, "nothing has written");
    check_fault(
        "add.u64 %d4, %d3, 512",
        "add.u64 %d4, %d3, 4096",
        FaultKind::OutOfBounds,
        "shared",
    );
    // A copy that is under way is not there, nor is one whose fence came before its wait.
    let copied = "ld.global.u32 %r4, [%d2];\nst.shared.u32 [%r3], %r4;";
    let copy = "cp.async.ca.shared.global [%r3], [%d2], 4;";
    check_fault(copied, copy, FaultKind::PendingCopy, "not been waited for");
    let text = CASE.text().replace(copied, copy);
    let right = text.replace("fence.proxy", "cp.async.wait_all;\nfence.proxy");
    assert!(CASE.run(&right, &Options::default()).is_ok());
    let late = text.replace("bar.sync", "cp.async.wait_all;\nbar.sync");
    let fault = fault_of(&late);
    assert_eq!(fault.kind, FaultKind::MissingFence, "{fault}");
}

fn fault_of(text: &str) -> Fault {
    fault(CASE.run(text, &Options::default()).map(|(_, stats)| stats))
}

#[test]
fn a_stage_that_is_overwritten_before_the_wait_changes_late_sums() {
    let store = "bar.sync 1;\nst.shared.u32 [%r1+0], 0;\nfence.proxy.async;\nbar.sync 2;";
    let text = CASE.text().replace("// between", store);
    let run = |arrival| CASE.run(&text, &Options { arrival, ..Options::default() });
    // All threads store the same word; warps race with each other, and one warp alone need not.
    assert_eq!(fault(run(Arrival::Early).map(|x| x.1)).kind, FaultKind::Race);
    let one = store.replace("st.shared", "setp.eq.u32 %p3, %r0, 0;\n@%p3 st.shared");
    let text = CASE.text().replace("// between", &one);
    let run = |arrival| CASE.run(&text, &Options { arrival, ..Options::default() });
    assert_eq!(run(Arrival::Early).expect("it is ordered").0, CASE.expected());
    assert_ne!(run(Arrival::Late).expect("it is ordered").0, CASE.expected());
}

#[test]
fn all_four_warps_multiply_together() {
    let divergent = FaultKind::DivergentBarrier;
    // One warp leaves before, or one lane.
    let leave = |n: u32| format!("setp.ge.u32 %p3, %r0, {n};\n@%p3 ret;\n// between");
    let text = CASE
        .text()
        .replace("wgmma.fence.sync.aligned;", &format!("{}\nwgmma.fence.sync.aligned;", leave(96)));
    for options in modes() {
        let fault = fault(CASE.run(&text, &options).map(|x| x.1));
        assert_eq!(fault.kind, divergent, "{fault}");
    }
    let text = CASE.text().replace(
        "wgmma.fence.sync.aligned;",
        &format!("{}\nwgmma.fence.sync.aligned;", leave(127)),
    );
    assert_eq!(fault_of(&text).kind, FaultKind::InactiveLane);
    // Warps whose descriptors, or lanes whose scales, differ.
    let other = "setp.ge.u32 %p3, %r0, 96;\n@%p3 add.u64 %d3, %d3, 64;\nwgmma.fence.sync.aligned;";
    check_fault("wgmma.fence.sync.aligned;", other, divergent, "other descriptors");
    let lanes = "setp.lt.u32 %p1, %r0, 3;\nwgmma.fence.sync.aligned;";
    check_fault("wgmma.fence.sync.aligned;", lanes, FaultKind::BadOperand, "different scales");
}

#[test]
fn descriptors_that_are_not_emulated_say_so() {
    let bad = FaultKind::BadOperand;
    let with_base = format!("or.b64 %d3, %d3, {};", CASE.layout() | 1 << 49);
    let or = format!("or.b64 %d3, %d3, {};", CASE.layout());
    check_fault(&or, &with_base, bad, "base offset 1");
    check_fault(
        "add.u64 %d5, %d3, 0;",
        "add.u64 %d5, %d3, 8;",
        bad,
        "in the first 128 bytes of each 1024",
    );
}

#[test]
fn forms_that_are_not_emulated_are_refused_at_load() {
    let text = CASE.text();
    let last = "%d5, %d6, %p1, 1, 1, 0, 0;";
    for (from, to, message) in [
        (last, "%d5, %d6, %p1, 1, 1, 0, 1;", "a transposed operand"),
        (last, "{%r1,%r2,%r3,%r4}, %d6, %p1, 1, 1, 0;", "A in registers"),
        (last, "%d5, %d6, %p1, 1, 2, 0, 0;", "scales of A and B are 1 or -1"),
        ("m64n24k16", "m64n32k16", "12 registers of an operand that takes 16"),
        ("m64n24k16", "m64n20k16", "its shape"),
        (".f32.bf16.bf16", ".f16.f16.f16", "these types"),
        (".target sm_90a", ".target sm_90", "wgmma needs .target sm_90a"),
    ] {
        assert!(text.contains(from), "{from}");
        let module = Module::parse(&text.replacen(from, to, 1)).unwrap();
        let error = emulator::Device::new().load(&module).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn every_fence_and_wait_matters() {
    let module = Module::parse(&CASE.text()).unwrap();
    let mutations = module.mutations("k").unwrap();
    let tried = mutations.iter().filter(|m| !matches!(m, Mutation::ShiftAddress(_)));
    let mut n = 0;
    for mutation in tried {
        n += 1;
        let mutated = module.mutated("k", *mutation).unwrap();
        let run = |options: &Options| {
            let mut s = Session::of(&mutated);
            let x = s.upload(&CASE.operands().1);
            let out = s.alloc(64 * 4 * CASE.n as u64);
            let shape = ([1, 1, 1], 128, CASE.bytes() as u32);
            s.launch("k", shape, &[x, out], options)
        };
        assert!(modes().iter().any(|options| run(options).is_err()), "{mutation:?}");
    }
    // A barrier, a wait and two fences.
    assert_eq!(n, 4);
}
