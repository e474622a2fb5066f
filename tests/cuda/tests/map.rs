//! Elementwise groups and copies.

use kernels::cuda::Gpu;
use tests::relative_l2;

#[test]
fn every_site_follows_the_interpreter() {
    for site in cuda_tests::sites::sites() {
        let given = site.given();
        let found = cuda_tests::run(&site.graph, &given, Gpu(80));
        let expected = cuda_tests::expected(&site.graph, &given);
        for (found, expected) in found.iter().zip(&expected) {
            let error = relative_l2(found.as_floats(), expected.as_floats());
            assert!(error <= site.limit, "{}: {error}", site.name);
        }
    }
}
