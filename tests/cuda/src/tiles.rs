//! Plans whose products are computed by another method than the one that was chosen.

use compiler::Plan;
use kernels::Kernel;
use kernels::cuda::gemm::{Method, Tile};
use kernels::cuda::{Function, Gpu};

/// Every method with tiles that `gpu` has.
pub fn methods(gpu: Gpu) -> Vec<Method> {
    let groups = Tile::GROUPS.into_iter().filter(|_| gpu >= Gpu(90)).map(Method::Group);
    Tile::ALL.into_iter().map(Method::Tensor).chain(groups).collect()
}

/// `plan` with `method` for each product of halves.
pub fn with_method(plan: &Plan, method: Method) -> Plan {
    let mut plan = plan.clone();
    let kernels = plan.steps.iter_mut().filter_map(|step| match &mut step.kernel {
        Kernel::Cuda(kernel) => Some(kernel),
        _ => None,
    });
    for launch in kernels.flat_map(|kernel| &mut kernel.launches) {
        if let Function::Matmul(matmul) = &mut launch.function {
            matmul.0.method = method;
            launch.grid = matmul.0.grid().expect("the grid of the chosen tile fits too");
        }
    }
    plan
}
