//! Families of instructions, one short kernel each: inputs in a row, one result a thread.

mod common;

use common::{Arg, Session};
use emulator::Options;

/// A kernel of one block: `body` computes `%out` (b32) from `%a`, `%b`, `%c` (b32), one element a thread.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.8\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 po)\n{{\n\
         .reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %d<16>;\n\
         .reg .b32 %a, %b, %c, %out; .reg .b64 %at, %off; .reg .f32 %f<8>; .reg .f64 %g<8>;\n\
         mov.u32 %r0, %tid.x;\nmul.wide.u32 %off, %r0, 4;\n\
         ld.param.u64 %at, [pa]; add.s64 %at, %at, %off; ld.global.b32 %a, [%at];\n\
         ld.param.u64 %at, [pb]; add.s64 %at, %at, %off; ld.global.b32 %b, [%at];\n\
         ld.param.u64 %at, [pc]; add.s64 %at, %at, %off; ld.global.b32 %c, [%at];\n\
         {body}\n\
         ld.param.u64 %at, [po]; add.s64 %at, %at, %off; st.global.b32 [%at], %out;\nret;\n}}\n"
    )
}

/// Results of `body` for rows of operands.
fn run(body: &str, rows: &[[u32; 3]]) -> Vec<u32> {
    let mut s = Session::new(&kernel(body));
    let column = |i: usize| rows.iter().map(|row| row[i]).collect::<Vec<u32>>();
    let [a, b, c] = [0, 1, 2].map(|i| s.upload_u32(&column(i)));
    let out = s.alloc(4 * rows.len() as u64);
    let shape = ([1, 1, 1], rows.len() as u32, 0);
    let launched = s.launch("k", shape, &[a, b, c, out], &Options::default());
    launched.unwrap_or_else(|e| panic!("{body}: {e}"));
    s.u32s(out, rows.len())
}

/// `op` gives `expected` for some integers.
fn integers(body: &str, expected: impl Fn(u32, u32, u32) -> u32) {
    let interesting =
        [0, 1, 2, 7, 31, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0x1234_5678, 0xfff0_0ff0];
    let mut rows = vec![];
    for (i, &a) in interesting.iter().enumerate() {
        for (j, &b) in interesting.iter().enumerate() {
            rows.push([a, b, interesting[(i + 3 * j) % interesting.len()]]);
        }
    }
    for (row, found) in rows.iter().zip(run(body, &rows)) {
        let [a, b, c] = *row;
        assert_eq!(found, expected(a, b, c), "{body} of {a:#x}, {b:#x}, {c:#x}");
    }
}

fn floats(body: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    let values = [0.0, -0.0, 1.0, -1.5, 3.0e38, 1e-40, -2e-38, 0.1, f32::INFINITY, f32::NAN, 1e-3];
    let mut rows = vec![];
    for (i, &a) in values.iter().enumerate() {
        for (j, &b) in values.iter().enumerate() {
            rows.push([a, b, values[(i + 2 * j) % values.len()]].map(f32::to_bits));
        }
    }
    for (row, found) in rows.iter().zip(run(body, &rows)) {
        let [a, b, c] = row.map(f32::from_bits);
        let (found, expected) = (f32::from_bits(found), expected(a, b, c));
        let is_same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(is_same, "{body} of {a:e}, {b:e}, {c:e}: {found:e}, expected {expected:e}");
    }
}

#[test]
fn integer_arithmetic() {
    integers("add.u32 %out, %a, %b;", |a, b, _| a.wrapping_add(b));
    integers("sub.s32 %out, %a, %b;", |a, b, _| a.wrapping_sub(b));
    integers("add.sat.s32 %out, %a, %b;", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    integers("mul.lo.s32 %out, %a, %b;", |a, b, _| a.wrapping_mul(b));
    integers("mul.hi.s32 %out, %a, %b;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    });
    integers("mul.hi.u32 %out, %a, %b;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    integers("mad.lo.u32 %out, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    integers(
        "mad.wide.s32 %d1, %a, %b, 5; shr.u64 %d1, %d1, 8; cvt.u32.u64 %out, %d1;",
        |a, b, _| ((i64::from(a as i32) * i64::from(b as i32) + 5) as u64 >> 8) as u32,
    );
    integers("div.s32 %out, %a, %b;", |a, b, _| match b {
        0 => u32::MAX,
        _ => (a as i32).wrapping_div(b as i32) as u32,
    });
    integers("rem.u32 %out, %a, %b;", |a, b, _| if b == 0 { a } else { a % b });
    integers("min.s32 %out, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u32);
    integers("max.u32 %out, %a, %b;", |a, b, _| a.max(b));
    integers("abs.s32 %out, %a;", |a, _, _| (a as i32).wrapping_abs() as u32);
    integers("neg.s32 %out, %a;", |a, _, _| a.wrapping_neg());
    integers("sad.u32 %out, %a, %b, %c;", |a, b, c| a.abs_diff(b).wrapping_add(c));
    integers("dp4a.s32.s32 %out, %a, %b, %c;", |a, b, c| {
        let dot = a
            .to_le_bytes()
            .into_iter()
            .zip(b.to_le_bytes())
            .map(|(x, y)| i32::from(x as i8) * i32::from(y as i8));
        c.wrapping_add(dot.sum::<i32>() as u32)
    });
    integers("dp2a.lo.u32.u32 %out, %a, %b, %c;", |a, b, c| {
        let dot = (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff);
        c.wrapping_add(dot)
    });
    integers("dp2a.hi.s32.s32 %out, %a, %b, %c;", |a, b, c| {
        let byte = |i: usize| i32::from(b.to_le_bytes()[i] as i8);
        let dot = i32::from(a as i16) * byte(2) + i32::from((a >> 16) as i16) * byte(3);
        c.wrapping_add(dot as u32)
    });
    integers("add.cc.u32 %r1, %a, %b; addc.u32 %out, %c, 0;", |a, b, c| {
        c.wrapping_add(u32::from(a.checked_add(b).is_none()))
    });
    integers("sub.cc.u32 %r1, %a, %b; subc.u32 %out, %c, 0;", |a, b, c| {
        c.wrapping_sub(u32::from(a < b))
    });
}

#[test]
fn narrow_and_wide_integers() {
    integers(
        "cvt.u16.u32 %h1, %a; cvt.u16.u32 %h2, %b; mul.wide.s16 %out, %h1, %h2;",
        |a, b, _| (i32::from(a as i16) * i32::from(b as i16)) as u32,
    );
    integers("cvt.u16.u32 %h1, %a; add.s16 %h1, %h1, -3; cvt.s32.s16 %out, %h1;", |a, _, _| {
        i32::from((a as i16).wrapping_sub(3)) as u32
    });
    integers(
        "cvt.s64.s32 %d1, %a; cvt.s64.s32 %d2, %b; mul.hi.s64 %d1, %d1, %d2; cvt.u32.u64 %out, %d1;",
        |a, b, _| ((i128::from(a as i32) * i128::from(b as i32)) >> 64) as u32,
    );
    integers("mov.b64 %d1, {%a, %b}; clz.b64 %out, %d1;", |a, b, _| {
        (u64::from(b) << 32 | u64::from(a)).leading_zeros()
    });
    integers("cvt.s8.s32 %r1, %a; cvt.s32.s8 %out, %r1;", |a, _, _| i32::from(a as i8) as u32);
    integers("cvt.sat.u8.s32 %r1, %a; cvt.u32.u8 %out, %r1;", |a, _, _| {
        (a as i32).clamp(0, 255) as u32
    });
}

#[test]
fn bits() {
    integers("and.b32 %r1, %a, %b; xor.b32 %r1, %r1, %c; not.b32 %out, %r1;", |a, b, c| {
        !(a & b ^ c)
    });
    integers("shl.b32 %out, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    integers("shr.u32 %out, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    integers("shr.s32 %out, %a, %b;", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    integers("shf.l.wrap.b32 %out, %a, %b, %c;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    });
    integers("shf.r.clamp.b32 %out, %a, %b, %c;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
    });
    integers("lop3.b32 %out, %a, %b, %c, 0xE8;", |a, b, c| a & b | a & c | b & c);
    integers("lop3.b32 %out, %a, %b, %c, 0x1b;", |a, b, c| {
        (0..32).fold(0, |bits, i| {
            let index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
            bits | (0x1b >> index & 1) << i
        })
    });
    integers("prmt.b32 %out, %a, %b, 0x5410;", |a, b, _| a & 0xffff | b << 16);
    integers("prmt.b32 %out, %a, %b, 0x9876;", |a, b, _| {
        let sign = |w: u32, i: u32| if w >> (8 * i + 7) & 1 == 1 { 0xff } else { 0 };
        b >> 16 & 0xff | (b >> 24) << 8 | sign(a, 0) << 16 | sign(a, 1) << 24
    });
    integers("bfe.u32 %out, %a, 5, 9;", |a, _, _| a >> 5 & 0x1ff);
    integers("bfe.s32 %out, %a, 28, 9;", |a, _, _| ((a as i32) >> 28) as u32);
    integers("bfi.b32 %out, %a, %b, 8, 12;", |a, b, _| b & !0xf_ff00 | (a & 0xfff) << 8);
    integers("bfind.u32 %out, %a;", |a, _, _| if a == 0 { u32::MAX } else { a.ilog2() });
    integers("bfind.shiftamt.s32 %out, %a;", |a, _, _| {
        let a = if (a as i32) < 0 { !a } else { a };
        if a == 0 { u32::MAX } else { a.leading_zeros() }
    });
    integers("brev.b32 %out, %a;", |a, _, _| a.reverse_bits());
    integers("popc.b32 %out, %a;", |a, _, _| a.count_ones());
    integers("cnot.b32 %out, %a;", |a, _, _| u32::from(a == 0));
}

#[test]
fn f32_arithmetic() {
    let flush = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    floats("add.f32 %out, %a, %b;", |a, b, _| a + b);
    floats("mul.ftz.f32 %out, %a, %b;", |a, b, _| flush(flush(a) * flush(b)));
    floats("fma.rn.f32 %out, %a, %b, %c;", f32::mul_add);
    floats("fma.rn.sat.f32 %out, %a, %b, %c;", |a, b, c| {
        let x = a.mul_add(b, c);
        if x > 0.0 { x.min(1.0) } else { 0.0 }
    });
    floats("div.rn.f32 %out, %a, %b;", |a, b, _| a / b);
    floats("neg.f32 %r1, %a; abs.f32 %out, %r1;", |a, _, _| a.abs());
    floats("max.f32 %out, %a, %b;", |a, b, _| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                b
            } else {
                a
            }
        }
        _ => a.max(b),
    });
    floats("min.NaN.f32 %out, %a, %b;", |a, b, _| {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else if a == b {
            if a.is_sign_negative() { a } else { b }
        } else {
            a.min(b)
        }
    });
    floats("sqrt.rn.f32 %out, %a;", |a, _, _| a.sqrt());
    floats("ex2.approx.ftz.f32 %out, %a;", |a, _, _| flush(f64::from(flush(a)).exp2() as f32));
    floats("lg2.approx.f32 %out, %a;", |a, _, _| f64::from(a).log2() as f32);
    floats("rsqrt.approx.f32 %out, %a;", |a, _, _| (1.0 / f64::from(a).sqrt()) as f32);
    floats("copysign.f32 %out, %a, %b;", |a, b, _| b.copysign(a));
}

#[test]
fn directed_rounding() {
    // 1 + 2^-24 is exactly between two numbers.
    let rows = [[1.0_f32.to_bits(), 2.0_f32.powi(-24).to_bits(), 0]];
    let up = 1.0 + f32::EPSILON;
    for (rounding, expected) in [("rn", 1.0), ("rz", 1.0), ("rm", 1.0), ("rp", up)] {
        let found = run(&format!("add.{rounding}.f32 %out, %a, %b;"), &rows);
        assert_eq!(f32::from_bits(found[0]), expected, "{rounding}");
    }
    let rows = [[1.0_f32.to_bits(), (-3.0_f32).to_bits(), 0]];
    let found = ["rm", "rp"].map(|rounding| {
        f32::from_bits(run(&format!("div.{rounding}.f32 %out, %a, %b;"), &rows)[0])
    });
    assert_eq!(found[0].next_up(), found[1]);
    assert!(f64::from(found[0]) < -1.0 / 3.0 && f64::from(found[1]) > -1.0 / 3.0);
}

#[test]
fn halves() {
    // 1.5 * 2.5 + 0.25 and -3 * 0.5 + 1, in both formats.
    let rows = [[0xc200_3e00, 0x3800_4100, 0x3c00_3400]];
    assert_eq!(run("fma.rn.f16x2 %out, %a, %b, %c;", &rows), [0xb800_4400]);
    let bf = [[0xc040_3fc0, 0x3f00_4020, 0x3f80_3e80]];
    assert_eq!(run("fma.rn.bf16x2 %out, %a, %b, %c;", &bf), [0xbf00_4080]);
    assert_eq!(run("fma.rn.relu.bf16x2 %out, %a, %b, %c;", &bf), [0x0000_4080]);
    assert_eq!(run("max.bf16x2 %out, %a, %b;", &bf), [0x3f00_4020]);
    assert_eq!(run("neg.bf16x2 %out, %a;", &bf), [0x4040_bfc0]);
    // f16: 2048 + 1 is a tie that goes to the even 2048; with 3 it goes up to 2052.
    let ties = [[0x6800_6800, 0x4200_3c00, 0]];
    assert_eq!(run("add.f16x2 %out, %a, %b;", &ties), [0x6802_6800]);
    let single =
        "cvt.u16.u32 %h1, %a; cvt.u16.u32 %h2, %b; mul.f16 %h3, %h1, %h2; cvt.u32.u16 %out, %h3;";
    assert_eq!(run(single, &rows), [0x4380]);
    let compare =
        "setp.lt.f16x2 %p1|%p2, %a, %b; selp.b32 %r1, 1, 0, %p1; selp.b32 %out, 10, %r1, %p2;";
    assert_eq!(run(compare, &[[0x4000_3c00, 0x3c00_4000, 0]]), [1]);
}

#[test]
fn conversions() {
    floats("cvt.rni.f32.f32 %out, %a;", |a, _, _| a.round_ties_even());
    floats("cvt.rzi.s32.f32 %out, %a;", |a, _, _| f32::from_bits((a as i32) as u32));
    floats("cvt.rmi.u32.f32 %out, %a;", |a, _, _| f32::from_bits(a.floor() as u32));
    floats(
        "cvt.f64.f32 %g1, %a; mul.f64 %g1, %g1, 0d3FE0000000000000; cvt.rn.f32.f64 %out, %g1;",
        |a, _, _| (f64::from(a) * 0.5) as f32,
    );
    integers("cvt.rn.f32.s32 %out, %a;", |a, _, _| (a as i32 as f32).to_bits());
    integers("cvt.rn.f32.u32 %out, %a;", |a, _, _| (a as f32).to_bits());
    integers("mov.b64 %d1, {%a, %b}; cvt.rn.f32.u64 %out, %d1;", |a, b, _| {
        ((u64::from(b) << 32 | u64::from(a)) as f32).to_bits()
    });
    let x = [[1.003_906_3_f32.to_bits(), (-70_000.0_f32).to_bits(), 0]];
    // The first operand is the upper half; f16 overflows to infinity, toward zero to its largest.
    assert_eq!(run("cvt.rn.f16x2.f32 %out, %b, %a;", &x), [0xfc00_3c04]);
    assert_eq!(run("cvt.rz.f16x2.f32 %out, %b, %a;", &x), [0xfbff_3c04]);
    assert_eq!(run("cvt.rn.relu.bf16x2.f32 %out, %b, %a;", &x), [0x0000_3f80]);
    assert_eq!(run("cvt.rna.tf32.f32 %out, %a;", &[[0x3f80_1000, 0, 0]]), [0x3f80_2000]);
    assert_eq!(
        run("cvt.rn.bf16.f32 %h1, %a; cvt.f32.bf16 %out, %h1;", &[[0x3f81_8000, 0, 0]]),
        [0x3f82_0000]
    );
}

#[test]
fn comparisons_and_selections() {
    let select = |setp: &str| format!("{setp} selp.u32 %out, 1, 0, %p1;");
    integers(&select("setp.lt.s32 %p1, %a, %b;"), |a, b, _| u32::from((a as i32) < b as i32));
    integers(&select("setp.lo.u32 %p1, %a, %b;"), |a, b, _| u32::from(a < b));
    integers(&select("setp.ne.u32 %p2, %a, 1; setp.ge.and.u32 %p1, %a, %b, !%p2;"), |a, b, _| {
        u32::from(a >= b && a == 1)
    });
    integers("setp.gt.u32 %p1|%p2, %a, %b; selp.u32 %out, 1, 0, %p2;", |a, b, _| u32::from(a <= b));
    integers("set.eq.u32.u32 %out, %a, %b;", |a, b, _| if a == b { u32::MAX } else { 0 });
    integers("slct.u32.s32 %out, %a, %b, %c;", |a, b, c| if (c as i32) >= 0 { a } else { b });
    let bit = |holds: bool| f32::from_bits(u32::from(holds));
    floats(&select("setp.ltu.f32 %p1, %a, %b;"), |a, b, _| bit(a.is_nan() || b.is_nan() || a < b));
    floats(&select("setp.neu.f32 %p1, %a, %b;"), |a, b, _| bit(a != b));
    floats(&select("setp.ne.f32 %p1, %a, %b;"), |a, b, _| {
        bit(!a.is_nan() && !b.is_nan() && a != b)
    });
    floats(&select("setp.num.f32 %p1, %a, %b;"), |a, b, _| bit(!a.is_nan() && !b.is_nan()));
    floats(&select("testp.subnormal.f32 %p1, %a;"), |a, _, _| bit(a.is_subnormal()));
    integers(
        "setp.lt.u32 %p1, %a, %b; setp.lt.u32 %p2, %b, %c; xor.pred %p3, %p1, %p2; \
         not.pred %p4, %p3; selp.u32 %out, 3, 4, %p4;",
        |a, b, c| if (a < b) == (b < c) { 3 } else { 4 },
    );
}

#[test]
fn divergent_loops_and_guards() {
    // Collatz steps: lanes leave the loop one after another.
    let collatz = "mov.u32 %out, 0;\n$loop:\nsetp.le.u32 %p1, %a, 1;\n@%p1 bra $done;\n\
                   and.b32 %r1, %a, 1;\nsetp.eq.u32 %p2, %r1, 0;\n@%p2 bra $even;\n\
                   mad.lo.u32 %a, %a, 3, 1;\nbra.uni $next;\n$even:\nshr.u32 %a, %a, 1;\n\
                   $next:\nadd.u32 %out, %out, 1;\nbra $loop;\n$done:\n";
    let steps = |mut a: u32| {
        let mut n = 0;
        while a > 1 {
            a = if a.is_multiple_of(2) { a / 2 } else { 3 * a + 1 };
            n += 1;
        }
        n
    };
    let rows: Vec<[u32; 3]> = (0..70).map(|a| [a, 0, 0]).collect();
    let expected: Vec<u32> = (0..70).map(steps).collect();
    assert_eq!(run(collatz, &rows), expected);
    integers(
        "mov.u32 %out, %a; setp.lt.u32 %p1, %a, %b; @!%p1 add.u32 %out, %out, 7;",
        |a, b, _| {
            if a < b { a } else { a.wrapping_add(7) }
        },
    );
}

#[test]
fn branches_by_a_table() {
    let body = "and.b32 %r1, %a, 3;\nts: .branchtargets $L0, $L1, $L2, $L1;\nbrx.idx %r1, ts;\n\
                $L0:\nmov.u32 %out, 100;\nbra $end;\n$L1:\nmov.u32 %out, 200;\nbra $end;\n\
                $L2:\nmov.u32 %out, %b;\n$end:\n";
    integers(body, |a, b, _| [100, 200, b, 200][a as usize & 3]);
}

#[test]
fn calls_with_parameters_in_memory_and_registers() {
    let functions = ".version 8.0\n.target sm_80\n.address_size 64\n\
        .func (.param .b32 result) square(.param .b32 x) {\n.reg .b32 %r<4>;\n\
        ld.param.u32 %r1, [x];\nsetp_free: mul.lo.u32 %r2, %r1, %r1;\n\
        st.param.b32 [result], %r2;\nret;\n}\n\
        .func (.reg .b32 r) plus(.reg .b32 x, .reg .b32 y) { add.u32 r, x, y; ret; }\n\
        .visible .entry k(.param .u64 out) {\n.reg .b32 %r<8>;\n.reg .b64 %d<4>;\n.reg .pred %p<2>;\n\
        mov.u32 %r1, %tid.x;\n{\n.param .b32 p0;\nst.param.b32 [p0], %r1;\n.param .b32 q0;\n\
        call.uni (q0), square, (p0);\nld.param.b32 %r2, [q0];\n}\n\
        setp.gt.u32 %p1, %r1, 4;\n@%p1 call (%r2), plus, (%r2, 1000);\n\
        ld.param.u64 %d1, [out];\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
        st.global.u32 [%d1], %r2;\nret;\n}\n";
    let mut s = Session::new(functions);
    let out = s.alloc(4 * 8);
    s.launch("k", ([1, 1, 1], 8, 0), &[out], &Options::default()).unwrap();
    assert_eq!(s.u32s(out, 8), [0, 1, 4, 9, 16, 1025, 1036, 1049]);
}

#[test]
fn local_and_constant_memory_and_generic_addresses() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
        .const .align 4 .b32 table[4] = {10, 20, 30};\n\
        .global .align 8 .u64 pointer = generic(table) + 4;\n\
        .visible .entry k(.param .u64 out) {\n.reg .b32 %r<8>;\n.reg .b64 %d<8>;\n.reg .pred %p<3>;\n\
        .local .align 4 .b8 mine[8];\n.shared .align 4 .b32 ours[32];\n\
        mov.u32 %r1, %tid.x;\nmov.u64 %d1, mine;\ncvta.local.u64 %d2, %d1;\n\
        st.u32 [%d2+4], %r1;\nld.local.u32 %r2, [%d1+4];\n\
        ld.global.u64 %d3, [pointer];\nld.u32 %r3, [%d3];\nadd.u32 %r2, %r2, %r3;\n\
        mov.u64 %d4, ours;\ncvta.shared.u64 %d5, %d4;\nmul.wide.u32 %d6, %r1, 4;\n\
        add.s64 %d5, %d5, %d6;\nst.u32 [%d5], %r2;\nisspacep.shared %p1, %d5;\n\
        isspacep.global %p2, %d5;\nld.u32 %r4, [%d5];\n@!%p1 add.u32 %r4, %r4, 1000;\n\
        @%p2 add.u32 %r4, %r4, 2000;\nld.param.u64 %d7, [out];\nadd.s64 %d7, %d7, %d6;\n\
        st.global.u32 [%d7], %r4;\nret;\n}\n";
    let mut s = Session::new(text);
    let out = s.alloc(4 * 32);
    s.launch("k", ([1, 1, 1], 32, 0), &[out], &Options::default()).unwrap();
    assert_eq!(s.u32s(out, 32), (20..52).collect::<Vec<u32>>());
}

#[test]
fn special_registers() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out) {\n\
        .reg .b32 %r<16>;\n.reg .b64 %d<4>;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %nctaid.x;\n\
        mov.u32 %r3, %ctaid.y;\nmad.lo.u32 %r1, %r3, %r2, %r1;\nmov.u32 %r4, %ntid.x;\n\
        mov.u32 %r5, %tid.x;\nmad.lo.u32 %r1, %r1, %r4, %r5;\nmov.u32 %r6, %laneid;\n\
        mov.u32 %r7, %warpid;\nmad.lo.u32 %r6, %r7, 1000, %r6;\nmov.u32 %r8, %lanemask_lt;\n\
        popc.b32 %r8, %r8;\nmad.lo.u32 %r6, %r8, 10000, %r6;\nld.param.u64 %d1, [out];\n\
        mul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\nst.global.u32 [%d1], %r6;\nret;\n}\n";
    let mut s = Session::new(text);
    let out = s.alloc(4 * 6 * 40);
    s.launch("k", ([2, 3, 1], 40, 0), &[out], &Options::default()).unwrap();
    for (i, found) in s.u32s(out, 240).into_iter().enumerate() {
        let thread = i as u32 % 40;
        assert_eq!(found, thread % 32 * 10_001 + thread / 32 * 1000);
    }
}

#[test]
fn matrices_stored_as_loaded() {
    // Through ldmatrix.trans and stmatrix.trans an 8x8 matrix comes back; with one of them, transposed.
    let text = |load: &str, store: &str| {
        format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 out) {{\n\
         .reg .b16 %h<4>; .reg .b32 %r<12>;\n.reg .b64 %d<6>;\n.shared .align 16 .b8 from[128];\n\
         .shared .align 16 .b8 to[128];\nmov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 1;\n\
         shl.b32 %r3, %r1, 2;\nmov.u32 %r4, from;\nadd.u32 %r5, %r4, %r3;\nadd.u32 %r6, %r2, 1;\n\
         cvt.u16.u32 %h1, %r2;\ncvt.u16.u32 %h2, %r6;\nst.shared.v2.u16 [%r5], {{%h1, %h2}};\n\
         and.b32 %r7, %r1, 7;\nshl.b32 %r7, %r7, 4;\nadd.u32 %r8, %r4, %r7;\n\
         ldmatrix.sync.aligned.m8n8.x1{load}.shared.b16 {{%r9}}, [%r8];\nmov.u32 %r10, to;\n\
         add.u32 %r8, %r10, %r7;\nstmatrix.sync.aligned.m8n8.x1{store}.shared.b16 [%r8], {{%r9}};\n\
         add.u32 %r10, %r10, %r3;\nld.shared.u32 %r11, [%r10];\nld.param.u64 %d1, [out];\n\
         mul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\nst.global.u32 [%d1], %r11;\nret;\n}}\n"
        )
    };
    for (load, store, is_transposed) in
        [("", "", false), (".trans", ".trans", false), (".trans", "", true), ("", ".trans", true)]
    {
        let mut s = Session::new(&text(load, store));
        let out = s.alloc(128);
        s.launch("k", ([1, 1, 1], 32, 0), &[out], &Options::default()).unwrap();
        let expected: Vec<u16> =
            (0..64).map(|i| if is_transposed { i % 8 * 8 + i / 8 } else { i }).collect();
        assert_eq!(s.u16s(out, 64), expected, "{load} {store}");
    }
}

#[test]
fn products_of_other_types() {
    // Every element of A is x and of B is y, so D = k x y + c.
    let product = |op: &str, n: [usize; 3], x: u32, y: u32, c: u32| {
        let list = |name: &str, n: usize| vec![name; n].join(", ");
        let d: Vec<String> = (0..n[2]).map(|i| format!("%r{}", i + 8)).collect();
        let body = format!(
            "{op} {{{}}}, {{{}}}, {{{}}}, {{{}}};\nmov.b32 %out, %r{};",
            d.join(", "),
            list("%a", n[0]),
            list("%b", n[1]),
            list("%c", n[2]),
            7 + n[2]
        );
        let found = run(&body, &[[x, y, c]; 32]);
        assert!(found.iter().all(|f| *f == found[0]), "{op}: {found:?}");
        found[0]
    };
    let (one, two) = (1.0_f32.to_bits(), 2.0_f32.to_bits());
    let mma = "mma.sync.aligned.m16n8k";
    let found = product(
        &format!("{mma}8.row.col.f32.f16.f16.f32"),
        [2, 1, 4],
        0x3c00_3c00,
        0x4000_4000,
        one,
    );
    assert_eq!(f32::from_bits(found), 17.0);
    let found = product(&format!("{mma}8.row.col.f32.tf32.tf32.f32"), [4, 2, 4], two, two, one);
    assert_eq!(f32::from_bits(found), 33.0);
    let found = product(&format!("{mma}4.row.col.f32.tf32.tf32.f32"), [2, 1, 4], two, two, one);
    assert_eq!(f32::from_bits(found), 17.0);
    let found = product(
        &format!("{mma}16.row.col.f16.f16.f16.f16"),
        [4, 2, 2],
        0x3c00_3c00,
        0x4000_4000,
        0x3c00_3c00,
    );
    assert_eq!(found, 0x5020_5020);
    let found =
        product(&format!("{mma}32.row.col.s32.s8.u8.s32"), [4, 2, 4], 0xffff_ffff, 0xffff_ffff, 5);
    assert_eq!(found as i32, 5 - 32 * 255);
}

#[test]
fn what_is_not_known_is_refused_at_load() {
    for (body, named) in [
        ("tcgen05.wait::ld.sync.aligned;", "tcgen05"),
        ("add.rn.ftz.weird.f32 %out, %a, %b;", "weird"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%a}, {%a}, {%a}, {%a};", "m8n8k4"),
        ("add.u32 %out, %a, %unknown;", "unknown"),
        ("add.u64 %out, %a, %b;", "32 bits"),
        ("bra $nowhere;", "$nowhere"),
    ] {
        let module = emulator::Module::parse(&kernel(body)).unwrap();
        let error = emulator::Device::new().load(&module).unwrap_err().to_string();
        assert!(error.contains("line 13") && error.contains(named), "{body}: {error}");
    }
}

#[test]
fn syntax_errors_name_what_was_expected() {
    for (text, line, expected) in [
        (".version 8.0\n.target sm_80\n.address_size 32\n", 3, "64"),
        (".version 8.0\n.visible .entry k() {\n  add.u32 %r1, ;\n}", 3, "an operand"),
        (".version 8.0\n.visible .entry k() {\n  @; bra x;\n", 3, "a predicate"),
        (".version 8.0\n.entry k(.param .b32 x {\n", 2, "`,` or `)`"),
        (".version 8.0\n.entry k() {\n ld.global.u32 %r1, [%r2;\n}", 3, "`]`"),
        (".version 8.0\n.global .b8 x[4000000000];", 2, "at most"),
    ] {
        let error = emulator::Module::parse(text).unwrap_err().to_string();
        let is_named = error.starts_with(&format!("line {line}: ")) && error.contains(expected);
        assert!(is_named, "{text:?}: {error}");
    }
}

#[test]
fn scalar_arguments_are_checked() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
                .entry k(.param .u64 x, .param .align 8 .b8 info[24]) .maxntid 64, 1, 1 { ret; }\n";
    let mut s = Session::new(text);
    let x = s.alloc(4);
    let error = s.launch("k", ([1, 1, 1], 1, 0), &[x], &Options::default()).unwrap_err();
    assert!(error.to_string().contains("1 parameters, expected 2"), "{error}");
    let args = [x, Arg::U32(1)];
    let error = s.launch("k", ([1, 1, 1], 1, 0), &args, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("4 bytes, expected 24"), "{error}");
}
