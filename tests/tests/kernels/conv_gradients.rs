//! Gradients of convolutions: every window, few channels and many, one piece of positions and several,
//! positions that no tap meets.

use ops::defs::conv::Window;
use ops::{DType, TensorType};

use super::{BF16, F32, check_body};

struct Case {
    x: &'static [usize],
    weight: &'static [usize],
    /// Strides, zeros before, zeros after.
    window: [&'static [usize]; 3],
}

impl Case {
    fn window(&self) -> Window {
        let [stride, low, high] = self.window;
        Window::new(stride, low, high)
    }

    /// The shape of the convolution's result.
    fn result(&self) -> Vec<usize> {
        let mut b = ops::Builder::new("shape");
        let args =
            [self.x, self.weight].map(|dims| b.input("", TensorType::new(F32, dims).unwrap()));
        let y = b.conv(args[0], args[1], &self.window()).unwrap();
        b.shape(y).to_vec()
    }
}

const fn case(
    x: &'static [usize],
    weight: &'static [usize],
    window: [&'static [usize]; 3],
) -> Case {
    Case { x, weight, window }
}

const SAME: [&[usize]; 3] = [&[1, 1], &[1, 1], &[1, 1]];

const CASES: [Case; 14] = [
    // Filtered, with a rest of tiles and of channels.
    case(&[2, 12, 11, 64], &[50, 64, 3, 3], SAME),
    case(&[1, 9, 14, 20], &[17, 20, 3, 3], [&[1, 1], &[0, 2], &[2, 1]]),
    // Few channels on either side.
    case(&[2, 13, 10, 3], &[50, 3, 3, 3], SAME),
    case(&[2, 10, 13, 40], &[3, 40, 3, 3], SAME),
    case(&[3, 5, 4, 1], &[1, 1, 3, 3], SAME),
    // One-sided padding before a stride, as encoders have it; an input that it does not divide.
    case(&[2, 12, 10, 24], &[40, 24, 3, 3], [&[2, 2], &[0, 0], &[1, 1]]),
    case(&[1, 11, 9, 50], &[9, 50, 3, 3], [&[2, 3], &[1, 2], &[0, 1]]),
    // 1-wide, also with positions between that no tap meets.
    case(&[2, 9, 7, 130], &[70, 130, 1, 1], [&[1, 1], &[0, 0], &[0, 0]]),
    case(&[2, 9, 8, 24], &[17, 24, 1, 1], [&[2, 2], &[0, 0], &[0, 0]]),
    // Other kernels and numbers of axes, more zeros than taps, patches.
    case(&[2, 40, 16], &[24, 16, 5], [&[2], &[4], &[0]]),
    case(&[1, 9, 18], &[5, 18, 2], [&[3], &[4], &[1]]),
    case(&[1, 3, 8, 8, 4], &[20, 4, 1, 2, 2], [&[1, 2, 2], &[0; 3], &[0; 3]]),
    case(&[1, 4, 5, 6, 17], &[9, 17, 3, 3, 3], [&[1, 1, 2], &[2, 1, 1], &[0, 1, 1]]),
    // Many positions: several blocks of the depth, pieces and rounds.
    case(&[2, 40, 37, 18], &[20, 18, 3, 3], SAME),
];

#[test]
fn gradients_of_inputs_run_every_window() {
    for case in &CASES {
        let (window, grad) = (case.window(), case.result());
        for dtype in [F32, BF16] {
            let types = [(&grad[..], dtype), (case.weight, dtype)];
            let name = format!("gradient of {:?} by {:?}", case.x, case.weight);
            check_body(&name, "conv_input_grad", &types, &[], |b, args| {
                b.conv_input_grad(args[0], args[1], &window, case.x)
            });
        }
    }
}

#[test]
fn gradients_of_inputs_take_what_is_done_to_them() {
    for case in &CASES {
        let (window, grad) = (case.window(), case.result());
        let mut channels = vec![1; case.x.len()];
        *channels.last_mut().unwrap() = case.x[case.x.len() - 1];
        for dtype in [F32, BF16] {
            let types = [
                (&grad[..], dtype),
                (case.weight, dtype),
                (case.x, dtype),
                (&channels[..], dtype),
                (case.x, dtype),
            ];
            check_body("gradient, gate, sum", "conv_input_grad", &types, &[1], |b, args| {
                let y = b.conv_input_grad(args[0], args[1], &window, case.x)?;
                let y = b.mul(y, args[2])?;
                let y = b.mul(y, args[3])?;
                b.add(y, args[4])
            });
        }
    }
}

#[test]
fn gradients_of_weights_run_every_window() {
    for case in &CASES {
        let (window, grad) = (case.window(), case.result());
        for dtype in [F32, BF16, DType::F16] {
            let types = [(case.x, dtype), (&grad[..], dtype)];
            let name = format!("gradient of {:?} under {:?}", case.weight, case.x);
            check_body(&name, "conv_weight_grad", &types, &[], |b, args| {
                b.conv_weight_grad(args[0], args[1], &window, case.weight)
            });
        }
    }
}

/// Weights that training changes are no parameters: they are packed in each run.
#[test]
fn convolutions_take_weights_that_change() {
    for case in &CASES {
        for dtype in [F32, BF16] {
            let types = [(case.x, dtype), (case.weight, dtype)];
            check_body("conv of a changing weight", "conv", &types, &[], |b, args| {
                b.conv(args[0], args[1], &case.window())
            });
        }
    }
}
