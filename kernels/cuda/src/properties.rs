//! What `CubeCL` is told of a device that is not there.

use std::sync::Arc;

use cubecl::ir::features::{Features, Plane};
use cubecl::ir::{
    DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, VectorSize,
};
use cubecl_cpp::register_supported_types;
use cubecl_cpp::shared::{CompilationOptions, CppSupportedFeatures};
use kernels::cuda::{Gpu, WARP};

/// Limits and features of the generation.
pub(crate) fn properties(gpu: Gpu) -> Arc<DeviceProperties> {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: WARP,
        plane_size_max: WARP,
        max_bindings: 1024,
        max_shared_memory_size: gpu.shared_bytes().1,
        max_cube_count: (i32::MAX as u32, u16::MAX.into(), u16::MAX.into()),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(gpu.multiprocessors() as u32),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity =
        DeviceIdentity { name: gpu.to_string(), fingerprint: gpu.to_string(), physical: None };
    let mut properties = DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(u64::MAX, 512),
        hardware,
        cubecl::profile::TimingMethod::Device,
        identity,
    );
    register_supported_types(&mut properties);
    let plane = &mut properties.features.plane;
    for feature in [Plane::Ops, Plane::Sync, Plane::NonUniformControlFlow] {
        plane.insert(feature);
    }
    properties.features.alignment = true;
    properties.features.memory_reinterpret = true;
    properties.features.copy_async = true;
    Arc::new(properties)
}

/// What the text may use.
pub(crate) fn options(gpu: Gpu) -> CompilationOptions {
    CompilationOptions {
        warp_size: WARP as usize,
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            clusters: false,
            fast_math: false,
            fast_tanh: false,
            elect_sync: gpu >= Gpu(90),
            dp4a: true,
        },
        amd_wmma: None,
    }
}
