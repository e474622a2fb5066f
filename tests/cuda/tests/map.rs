//! Elementwise groups and copies.

use kernels::cuda::Gpu;

#[test]
fn every_site_follows_the_interpreter() {
    for site in cuda_tests::sites::sites() {
        cuda_tests::check(&site, Gpu(80));
    }
}
