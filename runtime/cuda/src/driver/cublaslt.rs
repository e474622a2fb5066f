//! cuBLASLt itself, loaded when it is first asked for and kept.
//!
//! Functions are declared here as the library's header has them: enumerations are numbers, so that what a later
//! version says is a number, too. Of versions 12 and 13, in which all of this is the same.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;
use libloading::Library;

use crate::error::Error;
use crate::lt::{LtApi, Operands, Problem, Status, Workspace};

/// Names of the library, in the order in which they are tried: what any driver runs comes first.
const NAMES: &[&str] = if cfg!(windows) {
    &["cublasLt64_12.dll", "cublasLt64_13.dll"]
} else {
    &["libcublasLt.so.12", "libcublasLt.so.13", "libcublasLt.so"]
};
/// The least version, as the library tells it: 12.0.0.
const LEAST_VERSION: usize = 120_000;
const SUCCESS: c_int = 0;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> c_int;

/// What is called.
#[derive(Clone, Copy)]
struct Functions {
    create: Create,
    destroy: Destroy,
    create_matmul: unsafe extern "C" fn(*mut Handle, c_int, c_int) -> c_int,
    set_matmul: SetAttribute,
    destroy_matmul: Destroy,
    create_layout: unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> c_int,
    set_layout: SetAttribute,
    destroy_layout: Destroy,
    create_preference: Create,
    set_preference: SetAttribute,
    destroy_preference: Destroy,
    find_algorithm: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        c_int,
        *mut Found,
        *mut c_int,
    ) -> c_int,
    matmul: unsafe extern "C" fn(
        Handle,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *const c_void,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *mut c_void,
        Handle,
        *const Algorithm,
        *mut c_void,
        usize,
        CUstream,
    ) -> c_int,
}

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Default)]
struct Found {
    algorithm: Algorithm,
    _workspace_bytes: usize,
    state: c_int,
    _waves: f32,
    _reserved: [c_int; 4],
}

/// What an object is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Handle,
    Matmul,
    Layout,
    Preference,
}

/// An object, by its number among those that were made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object(usize);

/// The library, on one stream.
pub(super) struct CublasLt {
    functions: Functions,
    stream: CUstream,
    /// What was made and not destroyed.
    objects: Vec<Option<(Kind, Handle)>>,
}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CublasLt").field("objects", &self.objects.len()).finish_non_exhaustive()
    }
}

/// The functions, once they were looked for; none where there is no library.
static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();

impl Functions {
    /// Of the first library that has them all and is new enough.
    fn load() -> Option<Functions> {
        NAMES.iter().find_map(|name| {
            // SAFETY: opens a library by name and runs its initializers: NVIDIA's, as any program that uses it does.
            let library = unsafe { Library::new(*name) }.ok()?;
            // It stays loaded: the functions may be called as long as the process lives.
            Functions::of(Box::leak(Box::new(library)))
        })
    }

    fn of(library: &'static Library) -> Option<Functions> {
        // SAFETY: each function has the type that it is given: those of the library's header, whose enumerations
        // are as large as a C int.
        unsafe {
            let version =
                library.get::<unsafe extern "C" fn() -> usize>(c"cublasLtGetVersion").ok()?;
            if version() < LEAST_VERSION {
                return None;
            }
            Some(Functions {
                create: *library.get(c"cublasLtCreate").ok()?,
                destroy: *library.get(c"cublasLtDestroy").ok()?,
                create_matmul: *library.get(c"cublasLtMatmulDescCreate").ok()?,
                set_matmul: *library.get(c"cublasLtMatmulDescSetAttribute").ok()?,
                destroy_matmul: *library.get(c"cublasLtMatmulDescDestroy").ok()?,
                create_layout: *library.get(c"cublasLtMatrixLayoutCreate").ok()?,
                set_layout: *library.get(c"cublasLtMatrixLayoutSetAttribute").ok()?,
                destroy_layout: *library.get(c"cublasLtMatrixLayoutDestroy").ok()?,
                create_preference: *library.get(c"cublasLtMatmulPreferenceCreate").ok()?,
                set_preference: *library.get(c"cublasLtMatmulPreferenceSetAttribute").ok()?,
                destroy_preference: *library.get(c"cublasLtMatmulPreferenceDestroy").ok()?,
                find_algorithm: *library.get(c"cublasLtMatmulAlgoGetHeuristic").ok()?,
                matmul: *library.get(c"cublasLtMatmul").ok()?,
            })
        }
    }
}

impl CublasLt {
    /// The library for work on `stream`, which is of the context that is current in every call.
    ///
    /// # Errors
    /// [`Error::NoLibrary`].
    pub(super) fn open(stream: CUstream) -> Result<CublasLt, Error> {
        let missing = || Error::NoLibrary { looked_for: NAMES.join(", ") };
        let functions = FUNCTIONS.get_or_init(Functions::load).ok_or_else(missing)?;
        Ok(CublasLt { functions, stream, objects: vec![] })
    }

    /// Keeps what a function made.
    fn keep(&mut self, kind: Kind, status: c_int, made: Handle) -> Result<Object, Status> {
        check(status)?;
        self.objects.push(Some((kind, made)));
        Ok(Object(self.objects.len() - 1))
    }

    /// An object of kind `kind`.
    fn get(&self, object: Object, kind: Kind) -> Result<Handle, Status> {
        match self.objects.get(object.0) {
            Some(&Some((found, handle))) if found == kind => Ok(handle),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// The objects of a problem: product, A, B, C, D.
    fn handles(&self, problem: &Problem<Object>) -> Result<[Handle; 5], Status> {
        let Problem { matmul, a, b, c, d } = *problem;
        let layout = |object| self.get(object, Kind::Layout);
        Ok([self.get(matmul, Kind::Matmul)?, layout(a)?, layout(b)?, layout(c)?, layout(d)?])
    }
}

fn check(status: c_int) -> Result<(), Status> {
    if status == SUCCESS { Ok(()) } else { Err(Status(status)) }
}

impl LtApi for CublasLt {
    type Object = Object;
    type Algorithm = Algorithm;

    fn create_handle(&mut self) -> Result<Object, Status> {
        let mut made = ptr::null_mut();
        // SAFETY: writes the one handle that it is given.
        let status = unsafe { (self.functions.create)(&raw mut made) };
        self.keep(Kind::Handle, status, made)
    }

    fn create_matmul(&mut self, compute_type: i32, scale_type: i32) -> Result<Object, Status> {
        let mut made = ptr::null_mut();
        // SAFETY: as above.
        let status =
            unsafe { (self.functions.create_matmul)(&raw mut made, compute_type, scale_type) };
        self.keep(Kind::Matmul, status, made)
    }

    fn create_layout(
        &mut self,
        data_type: i32,
        rows: u64,
        columns: u64,
        leading: i64,
    ) -> Result<Object, Status> {
        let mut made = ptr::null_mut();
        // SAFETY: as above.
        let status = unsafe {
            (self.functions.create_layout)(&raw mut made, data_type, rows, columns, leading)
        };
        self.keep(Kind::Layout, status, made)
    }

    fn create_preference(&mut self) -> Result<Object, Status> {
        let mut made = ptr::null_mut();
        // SAFETY: as above.
        let status = unsafe { (self.functions.create_preference)(&raw mut made) };
        self.keep(Kind::Preference, status, made)
    }

    fn set(&mut self, object: Object, attribute: u32, value: &[u8]) -> Result<(), Status> {
        let Some(&Some((kind, handle))) = self.objects.get(object.0) else {
            return Err(Status::INVALID_VALUE);
        };
        let set = match kind {
            Kind::Handle => return Err(Status::INVALID_VALUE),
            Kind::Matmul => self.functions.set_matmul,
            Kind::Layout => self.functions.set_layout,
            Kind::Preference => self.functions.set_preference,
        };
        // SAFETY: the object is of the kind that the function takes and was not destroyed; as many bytes are read as
        // there are, and copied.
        check(unsafe { set(handle, attribute.cast_signed(), value.as_ptr().cast(), value.len()) })
    }

    fn destroy(&mut self, object: Object) -> Result<(), Status> {
        let taken = self.objects.get_mut(object.0).and_then(Option::take);
        let Some((kind, handle)) = taken else { return Err(Status::INVALID_VALUE) };
        let destroy = match kind {
            Kind::Handle => self.functions.destroy,
            Kind::Matmul => self.functions.destroy_matmul,
            Kind::Layout => self.functions.destroy_layout,
            Kind::Preference => self.functions.destroy_preference,
        };
        // SAFETY: the object is of the kind that the function takes, and is forgotten.
        check(unsafe { destroy(handle) })
    }

    fn find_algorithm(
        &mut self,
        handle: Object,
        problem: &Problem<Object>,
        preference: Object,
    ) -> Result<Option<Algorithm>, Status> {
        let library = self.get(handle, Kind::Handle)?;
        let preference = self.get(preference, Kind::Preference)?;
        let [matmul, a, b, c, d] = self.handles(problem)?;
        let (mut found, mut n_found) = (Found::default(), 0);
        let find = self.functions.find_algorithm;
        // SAFETY: the objects are of their kinds and were not destroyed; one result at most is written, and how many
        // they are.
        let status = unsafe {
            let found = &raw mut found;
            find(library, matmul, a, b, c, d, preference, 1, found, &raw mut n_found)
        };
        check(status)?;
        if n_found == 0 {
            return Ok(None);
        }
        check(found.state)?;
        Ok(Some(found.algorithm))
    }

    fn matmul(
        &mut self,
        handle: Object,
        problem: &Problem<Object>,
        operands: &Operands,
        algorithm: &Algorithm,
        workspace: Workspace,
    ) -> Result<(), Status> {
        let library = self.get(handle, Kind::Handle)?;
        let [matmul, a, b, c, d] = self.handles(problem)?;
        let Operands { alpha, beta, .. } = operands;
        // SAFETY: the objects are of their kinds and were not destroyed. Factors are f32, as the product was made to
        // scale, and are read before the call returns. Addresses are those of the GPU's memory: `Driver::prepare` has
        // checked them against its allocations, and only it and `Driver::multiply` come here. The stream is of the
        // current context.
        check(unsafe {
            (self.functions.matmul)(
                library,
                matmul,
                ptr::from_ref(alpha).cast(),
                address(operands.a),
                a,
                address(operands.b),
                b,
                ptr::from_ref(beta).cast(),
                address(operands.c),
                c,
                address(operands.d),
                d,
                algorithm,
                address(workspace.address),
                workspace.bytes as usize,
                self.stream,
            )
        })
    }
}

/// An address of the GPU's memory, which is never read here.
fn address(address: u64) -> *mut c_void {
    ptr::without_provenance_mut(address as usize)
}

#[cfg(test)]
mod tests {
    use engine::{Matrix, Product};
    use ops::DType;

    use super::*;
    use crate::multiplier::{describe, set_preference};

    #[test]
    fn what_the_library_writes_has_its_size() {
        // 8 words, a size, a state, a float, four numbers.
        assert_eq!(size_of::<Found>(), 64 + 8 + 4 + 4 + 16);
    }

    /// A product with everything that is described.
    fn product() -> Product {
        let matrix = |pointer, leading| Matrix {
            pointer,
            is_transposed: false,
            leading,
            batch_stride: 32 * leading,
        };
        Product {
            factors: DType::Bf16,
            sums: DType::F32,
            batch: 2,
            rows: 32,
            columns: 32,
            depth: 32,
            left: matrix(0, 32),
            right: matrix(1, 40),
            result: matrix(2, 48),
            bias: Some(3),
            residual: Some(matrix(2, 48)),
            is_faster: false,
        }
    }

    #[test]
    fn a_machine_without_the_library_is_told_and_one_with_it_takes_every_attribute() {
        let mut library = match CublasLt::open(ptr::null_mut()) {
            Ok(library) => library,
            Err(error) => {
                assert!(error.to_string().contains("libcublasLt.so.12"), "{error}");
                return;
            }
        };
        // Descriptors need no GPU.
        let (mut made, pointers) = (vec![], [4096, 8192, 12_288, 16_384]);
        let (_, operands) = describe(&mut library, &product(), &pointers, &mut made).unwrap();
        let preference = library.create_preference().unwrap();
        let workspace = Workspace { address: 65_536, bytes: 4096 };
        set_preference(&mut library, preference, &operands, workspace).unwrap();
        // The library tells sizes and attributes apart.
        for (object, attribute, value) in [
            (made[0], 8, &[0; 4]),
            (made[0], 99, &[0; 4]),
            (made[1], 6, &[0; 4]),
            (preference, 1, &[0; 4]),
        ] {
            let refused = library.set(object, attribute, value);
            assert_eq!(refused, Err(Status::INVALID_VALUE), "attribute {attribute}");
        }
        made.push(preference);
        for object in made {
            library.destroy(object).unwrap();
            assert_eq!(library.destroy(object), Err(Status::INVALID_VALUE));
        }
        assert_eq!(library.set(preference, 1, &[0; 8]), Err(Status::INVALID_VALUE));
    }
}
