//! Sums of rows by id, in shapes that the op's examples are too small for.

use ops::DType;

use super::{BF16, F32, check_body_in};

/// More columns than an item has, planes of rows, ids on both sides of the table; then scalars behind a permutation,
/// as the gradient of a table of biases by position has them.
#[test]
fn rows_add_up_by_their_ids() {
    for dtype in [F32, BF16, DType::F16] {
        let types: [(&[usize], DType); 2] = [(&[3, 5], DType::I64), (&[3, 5, 2, 131], dtype)];
        let (name, range) = (format!("rows of {dtype}"), (-1.0, 4.0));
        check_body_in(range, &name, "scatter_add", &types, &[], |b, args| {
            b.scatter_add(args[0], args[1], 4)
        });
    }
    let types: [(&[usize], DType); 2] = [(&[6, 7], DType::I32), (&[1, 3, 6, 7], F32)];
    check_body_in((0.0, 7.0), "biases", "scatter_add", &types, &[], |b, args| {
        let x = b.permute(args[1], &[2, 3, 1, 0])?;
        b.scatter_add(args[0], x, 8)
    });
}
