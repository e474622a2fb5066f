//! Products whose sums are made in C, which is nothing but them and a bias.

use kernels::cpu::RowView;
use kernels::cpu::matmul::MatmulSpec;
use kernels::program::{Program, ProgramBuilder};
use ops::DType;
use ops::defs::binary::Binary;

use super::{
    Operands, Random, assert_close, buffer, decode, of_digits, plain, product, run, sum_tolerance,
    view,
};

/// Sums by way of the scratch: an epilogue that changes nothing, in a form of which that is not seen.
fn copied() -> Program {
    let mut p = ProgramBuilder::new();
    let x = p.slot(DType::F32);
    let one = p.constant(1.0);
    let x = p.binary(Binary::Mul, x, one);
    p.finish(x, DType::F32).unwrap()
}

/// The sum and an operand; `is_first`: that is the left one.
fn with_operand(is_first: bool) -> Program {
    let mut p = ProgramBuilder::new();
    let (x, y) = (p.slot(DType::F32), p.slot(DType::F32));
    let x = if is_first { p.binary(Binary::Add, y, x) } else { p.binary(Binary::Add, x, y) };
    p.finish(x, DType::F32).unwrap()
}

/// Bytes of a C in which nothing is written yet.
const UNWRITTEN: u8 = 0xa5;

/// Where rows of C lie in memory.
fn layouts(m: usize, n: usize) -> Vec<(Vec<usize>, RowView)> {
    let offset = |view: RowView, offset: usize| RowView { offset, ..view };
    let c = |strides: &[usize]| view(DType::F32, strides, 1);
    let mut layouts = vec![
        (vec![m], c(&[n])),
        // Gaps between rows, and before the first.
        (vec![m], offset(c(&[n + 7]), 5)),
        // Rows along two dims and one of length one, evenly spaced.
        (vec![m / 2, 1, 2], offset(c(&[2 * (n + 16), 3, n + 16]), 16)),
        // The same, and not evenly spaced: of these, sums are made in scratch.
        (vec![m / 2, 2], offset(c(&[2 * n + 9, n]), 1)),
        (vec![2, m / 2], c(&[n, 2 * n])),
    ];
    layouts.retain(|(rows, _)| rows.iter().product::<usize>() == m);
    layouts
}

/// The first element of each row of C.
fn row_starts(rows: &[usize], c: &RowView) -> Vec<usize> {
    let mut starts = vec![c.offset];
    for (&dim, &stride) in rows.iter().zip(&c.row_strides) {
        let along = |start: usize| (0..dim).map(move |i| start + i * stride);
        starts = starts.into_iter().flat_map(along).collect();
    }
    starts
}

/// Strides of rows of `k` elements without gaps.
fn dense_strides(rows: &[usize], k: usize) -> Vec<usize> {
    (0..rows.len()).map(|dim| k * rows[dim + 1..].iter().product::<usize>()).collect()
}

#[test]
fn sums_made_in_c_have_the_bits_of_those_in_scratch_and_nothing_else_is_written() {
    let mut random = Random(11);
    // Whole vectors on each instruction set, and not; one block of the depth and of the rows, and several.
    for (m, n, k) in [(1, 16, 40), (2, 17, 64), (22, 48, 700), (270, 96, 130), (40, 400, 1501)] {
        let a = buffer(&mut random, DType::F32, m * k);
        let b = buffer(&mut random, DType::F32, n * k);
        let added = buffer(&mut random, DType::F32, 3 + m * n);
        let sums = product((m, n, k), |r, i| a.values[r * k + i], |i, c| b.values[c * k + i]);
        // Of a bias, and of what is another number for each element.
        let expected = [n, m * n].map(|period| -> Vec<(f64, f64)> {
            let added = added.values[3..][..period].iter().cycle();
            sums.iter().zip(added).map(|((sum, scale), x)| (sum + x, scale + x.abs())).collect()
        });
        for (rows, c) in layouts(m, n) {
            let starts = row_starts(&rows, &c);
            let unwritten = vec![UNWRITTEN; 4 * (starts.iter().max().unwrap() + n + 8)];
            let operands_of = [vec![0; rows.len()], dense_strides(&rows, n)]
                .map(|strides| RowView { offset: 3, ..view(DType::F32, &strides, 1) });
            for spec in [plain(m, n, k), of_digits(m, n, k, (1, k))] {
                let a_view = view(DType::F32, &dense_strides(&rows, k), 1);
                let spec = MatmulSpec { rows: rows.clone(), a: a_view, c: c.clone(), ..spec };
                let what = format!("{rows:?} x {n} x {k}, {c:?}, digits: {}", spec.digits);
                let operands = Operands::plain(&a, &b, (1, k));
                let in_scratch = MatmulSpec { epilogue: copied(), ..spec.clone() };
                let sums = run(&spec, &operands, &unwritten);
                assert!(sums == run(&in_scratch, &operands, &unwritten), "{what}");
                for case in 0..4 {
                    let (expected, operand) = (&expected[case % 2], &operands_of[case % 2]);
                    let spec = MatmulSpec {
                        epilogue: with_operand(case / 2 == 0),
                        epilogue_operands: vec![operand.clone()],
                        ..spec.clone()
                    };
                    let operands = Operands { epilogue: &[&added], ..operands };
                    for (isa, found) in run(&spec, &operands, &unwritten) {
                        let mut rest = found.clone();
                        let mut elements = Vec::new();
                        for start in &starts {
                            let row = 4 * start..4 * (start + n);
                            elements.extend(decode(DType::F32, &found[row.clone()]));
                            rest[row].fill(UNWRITTEN);
                        }
                        assert!(rest == unwritten, "{isa} {what}: written beside C");
                        assert_close(isa, &what, &elements, expected, sum_tolerance(k + 1));
                    }
                }
            }
        }
    }
}
