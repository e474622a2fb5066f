//! A model of cuBLASLt that knows nothing but what it is told: attributes by their numbers and sizes, matrices that
//! lie column by column, addresses. It refuses what NVIDIA's documentation rules out, and computes the rest from the
//! descriptors alone on a device's memory, so that a wrong leading dimension or transposition is a wrong number.

use std::collections::BTreeMap;

use cuda::lt::{
    self, LtApi, Operands, Problem, Status, Workspace, data_type, epilogue, layout_attribute,
    matmul_attribute, operation, preference_attribute,
};
use cuda::{Device, Error};
use ops::{DType, Tensor, TensorType};

/// An object that was made, with the attributes that were set.
#[derive(Clone, Debug)]
struct Described {
    kind: Kind,
    attributes: BTreeMap<u32, Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Handle,
    Matmul { compute_type: i32, scale_type: i32 },
    Layout { data_type: i32, rows: u64, columns: u64, leading: i64 },
    Preference,
}

/// The library.
#[derive(Debug, Default)]
pub struct LtModel {
    objects: Vec<Option<Described>>,
    /// What each algorithm was found for.
    found: Vec<Found>,
    calls: Vec<Call>,
    log: Vec<String>,
    finds_nothing: bool,
}

/// What an algorithm relies on.
#[derive(Clone, Debug)]
struct Found {
    matmul: usize,
    /// What the addresses of A, B, C and D are multiples of.
    alignments: [u32; 4],
    workspace_bytes: u64,
}

/// Matrices of one type and size.
#[derive(Clone, Copy, Debug)]
struct Matrices {
    dtype: DType,
    rows: usize,
    columns: usize,
    leading: usize,
    count: usize,
    stride: usize,
}

/// A product as the library was told of it.
#[derive(Clone, Debug)]
pub struct Call {
    a: Matrices,
    b: Matrices,
    c: Matrices,
    d: Matrices,
    transposes: [bool; 2],
    bias: Option<u64>,
    operands: Operands,
}

type Outcome<T> = Result<T, Status>;

fn require(is_right: bool) -> Outcome<()> {
    if is_right { Ok(()) } else { Err(Status::INVALID_VALUE) }
}

/// The attribute's value, which has the size that the library's header gives it.
fn word<const N: usize>(object: &Described, attribute: u32) -> Option<[u8; N]> {
    let bytes = object.attributes.get(&attribute)?;
    Some(bytes.as_slice().try_into().expect("`set` refuses other sizes"))
}

fn dtype(number: i32) -> Outcome<DType> {
    match number {
        data_type::R_32F => Ok(DType::F32),
        data_type::R_16F => Ok(DType::F16),
        data_type::R_16BF => Ok(DType::Bf16),
        _ => Err(Status::NOT_SUPPORTED),
    }
}

impl LtModel {
    /// One that finds no algorithm for anything.
    pub fn unable() -> LtModel {
        LtModel { finds_nothing: true, ..LtModel::default() }
    }

    /// The calls since this was last asked, one a line.
    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// The products since this was last asked.
    pub fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    /// Objects that were made and not destroyed.
    pub fn n_objects(&self) -> usize {
        self.objects.iter().flatten().count()
    }

    fn make(&mut self, kind: Kind, call: &str) -> Outcome<usize> {
        self.objects.push(Some(Described { kind, attributes: BTreeMap::new() }));
        let number = self.objects.len() - 1;
        self.log.push(format!("{number} = {call}"));
        Ok(number)
    }

    fn get(&self, object: usize) -> Outcome<&Described> {
        self.objects.get(object).and_then(Option::as_ref).ok_or(Status::INVALID_VALUE)
    }

    fn matrices(&self, object: usize) -> Outcome<Matrices> {
        let described = self.get(object)?;
        let Kind::Layout { data_type, rows, columns, leading } = described.kind else {
            return Err(Status::INVALID_VALUE);
        };
        require(rows > 0 && columns > 0 && leading >= rows as i64)?;
        let count = word(described, layout_attribute::BATCH_COUNT).map_or(1, i32::from_ne_bytes);
        let stride =
            word(described, layout_attribute::STRIDED_BATCH_OFFSET).map_or(0, i64::from_ne_bytes);
        require(count > 0 && stride >= 0)?;
        Ok(Matrices {
            dtype: dtype(data_type)?,
            rows: rows as usize,
            columns: columns as usize,
            leading: leading as usize,
            count: count as usize,
            stride: stride as usize,
        })
    }

    /// The product that the descriptors say, if there is such a product.
    fn call(&self, problem: &Problem<usize>, operands: &Operands) -> Outcome<Call> {
        let matmul = self.get(problem.matmul)?;
        let sums = Kind::Matmul { compute_type: lt::COMPUTE_32F, scale_type: data_type::R_32F };
        require(matmul.kind == sums)?;
        let [a, b] = [self.matrices(problem.a)?, self.matrices(problem.b)?];
        let [c, d] = [self.matrices(problem.c)?, self.matrices(problem.d)?];
        let transposes = [matmul_attribute::TRANSA, matmul_attribute::TRANSB]
            .map(|attribute| word(matmul, attribute).map(i32::from_ne_bytes) == Some(operation::T));
        let op = |of: &Matrices, is_transposed: bool| match is_transposed {
            true => [of.columns, of.rows],
            false => [of.rows, of.columns],
        };
        let ([m, k], [k_of_b, n]) = (op(&a, transposes[0]), op(&b, transposes[1]));
        require(k == k_of_b && [c, d].iter().all(|of| (of.rows, of.columns) == (m, n)))?;
        require([a, b, c].iter().all(|of| of.count == d.count))?;
        let are_known = a.dtype == b.dtype
            && a.dtype != DType::F32
            && c.dtype == d.dtype
            && [a.dtype, DType::F32].contains(&d.dtype);
        if !are_known {
            return Err(Status::NOT_SUPPORTED);
        }
        // In place, C lies as D does.
        require(operands.c != operands.d || (c.leading, c.stride) == (d.leading, d.stride))?;
        let bias = match word(matmul, matmul_attribute::EPILOGUE).map(u32::from_ne_bytes) {
            None | Some(epilogue::DEFAULT) => None,
            Some(epilogue::BIAS) => {
                let ty = word(matmul, matmul_attribute::BIAS_DATA_TYPE).map(i32::from_ne_bytes);
                require(ty.map_or(Ok(d.dtype), dtype)? == d.dtype)?;
                let pointer = word(matmul, matmul_attribute::BIAS_POINTER).map(u64::from_ne_bytes);
                Some(pointer.filter(|&address| address > 0).ok_or(Status::INVALID_VALUE)?)
            }
            Some(_) => return Err(Status::NOT_SUPPORTED),
        };
        Ok(Call { a, b, c, d, transposes, bias, operands: *operands })
    }
}

impl LtApi for LtModel {
    type Object = usize;
    type Algorithm = usize;

    fn create_handle(&mut self) -> Outcome<usize> {
        self.make(Kind::Handle, "handle")
    }

    fn create_matmul(&mut self, compute_type: i32, scale_type: i32) -> Outcome<usize> {
        let kind = Kind::Matmul { compute_type, scale_type };
        self.make(kind, &format!("matmul {compute_type} {scale_type}"))
    }

    fn create_layout(
        &mut self,
        data_type: i32,
        rows: u64,
        columns: u64,
        leading: i64,
    ) -> Outcome<usize> {
        let kind = Kind::Layout { data_type, rows, columns, leading };
        self.make(kind, &format!("layout {data_type} {rows}x{columns} {leading}"))
    }

    fn create_preference(&mut self) -> Outcome<usize> {
        self.make(Kind::Preference, "preference")
    }

    fn set(&mut self, object: usize, attribute: u32, value: &[u8]) -> Outcome<()> {
        use {
            layout_attribute as layout, matmul_attribute as matmul,
            preference_attribute as preference,
        };
        let described = self.objects.get_mut(object).and_then(Option::as_mut);
        let described = described.ok_or(Status::INVALID_VALUE)?;
        let size = match (described.kind, attribute) {
            (Kind::Matmul { .. }, matmul::BIAS_POINTER)
            | (Kind::Layout { .. }, layout::STRIDED_BATCH_OFFSET)
            | (Kind::Preference, preference::MAX_WORKSPACE_BYTES) => 8,
            (
                Kind::Matmul { .. },
                matmul::TRANSA | matmul::TRANSB | matmul::EPILOGUE | matmul::BIAS_DATA_TYPE,
            )
            | (Kind::Layout { .. }, layout::BATCH_COUNT)
            | (
                Kind::Preference,
                preference::REDUCTION_SCHEME_MASK
                | preference::MIN_ALIGNMENT_A_BYTES
                | preference::MIN_ALIGNMENT_B_BYTES
                | preference::MIN_ALIGNMENT_C_BYTES
                | preference::MIN_ALIGNMENT_D_BYTES,
            ) => 4,
            _ => return Err(Status::INVALID_VALUE),
        };
        require(value.len() == size)?;
        described.attributes.insert(attribute, value.to_vec());
        let number = value.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        self.log.push(format!("{object}.{attribute} = {number}"));
        Ok(())
    }

    fn destroy(&mut self, object: usize) -> Outcome<()> {
        let taken = self.objects.get_mut(object).and_then(Option::take);
        self.log.push(format!("destroy {object}"));
        taken.map(|_| ()).ok_or(Status::INVALID_VALUE)
    }

    fn find_algorithm(
        &mut self,
        handle: usize,
        problem: &Problem<usize>,
        preference: usize,
    ) -> Outcome<Option<usize>> {
        let Problem { matmul, a, b, c, d } = *problem;
        self.log.push(format!("find {matmul} {a} {b} {c} {d} by {preference}"));
        require(self.get(handle)?.kind == Kind::Handle)?;
        let preference = self.get(preference)?;
        require(preference.kind == Kind::Preference)?;
        // Addresses that no two of are alike: what is checked of them waits for the product.
        let operands = Operands { alpha: 1.0, a: 1, b: 2, beta: 0.0, c: 3, d: 4 };
        self.call(problem, &operands)?;
        use preference_attribute as attribute;
        let number = |attribute| word(preference, attribute).map_or(256, u32::from_ne_bytes);
        let alignments = [
            attribute::MIN_ALIGNMENT_A_BYTES,
            attribute::MIN_ALIGNMENT_B_BYTES,
            attribute::MIN_ALIGNMENT_C_BYTES,
            attribute::MIN_ALIGNMENT_D_BYTES,
        ]
        .map(number);
        require(alignments.iter().all(|bytes| bytes.is_power_of_two()))?;
        let workspace_bytes = word(preference, attribute::MAX_WORKSPACE_BYTES);
        let workspace_bytes = workspace_bytes.map_or(0, u64::from_ne_bytes);
        if self.finds_nothing {
            return Ok(None);
        }
        self.found.push(Found { matmul, alignments, workspace_bytes });
        Ok(Some(self.found.len() - 1))
    }

    fn matmul(
        &mut self,
        handle: usize,
        problem: &Problem<usize>,
        operands: &Operands,
        algorithm: &usize,
        workspace: Workspace,
    ) -> Outcome<()> {
        let Problem { matmul, a, b, c, d } = *problem;
        self.log.push(format!("multiply {matmul} {a} {b} {c} {d} by algorithm {algorithm}"));
        require(self.get(handle)?.kind == Kind::Handle)?;
        let call = self.call(problem, operands)?;
        let found = self.found.get(*algorithm).ok_or(Status::INVALID_VALUE)?;
        let addresses = [operands.a, operands.b, operands.c, operands.d];
        let mut aligned = addresses.iter().zip(found.alignments);
        require(aligned.all(|(address, bytes)| address.is_multiple_of(bytes.into())))?;
        require(found.matmul == matmul && workspace.bytes >= found.workspace_bytes)?;
        require(workspace.bytes == 0 || workspace.address.is_multiple_of(256))?;
        self.calls.push(call);
        Ok(())
    }
}

impl Matrices {
    /// Elements of matrix `number`, from the first to the last.
    fn read(&self, device: &mut dyn Device, base: u64, number: usize) -> Result<Vec<f64>, Error> {
        let n = (self.columns - 1) * self.leading + self.rows;
        read(device, base + self.at(number, 0), self.dtype, n)
    }

    /// Bytes to the first element of a column of matrix `number`.
    fn at(&self, number: usize, column: usize) -> u64 {
        ((number * self.stride + column * self.leading) * self.dtype.size()) as u64
    }
}

fn vector(dtype: DType, n: usize) -> TensorType {
    TensorType::new(dtype, [n]).expect("a vector")
}

fn read(device: &mut dyn Device, at: u64, dtype: DType, n: usize) -> Result<Vec<f64>, Error> {
    let ty = vector(dtype, n);
    let mut bytes = vec![0; ty.bytes()];
    device.download(at, &mut bytes)?;
    let tensor = Tensor::from_bytes(ty, &bytes).expect("as many bytes as the type has");
    Ok(tensor.as_floats().to_vec())
}

impl Call {
    /// Computes the product in the memory of `device`.
    ///
    /// # Errors
    /// What the device says of an address.
    pub fn compute(&self, device: &mut dyn Device) -> Result<(), Error> {
        let Call { a, b, c, d, transposes, operands, .. } = self;
        let depth = if transposes[0] { a.rows } else { a.columns };
        let bias = match self.bias {
            Some(address) => read(device, address, d.dtype, d.rows)?,
            None => vec![0.0; d.rows],
        };
        for number in 0..d.count {
            let of_a = a.read(device, operands.a, number)?;
            let of_b = b.read(device, operands.b, number)?;
            // C is not read where its factor is zero.
            let is_added = operands.beta != 0.0;
            let of_c = is_added.then(|| c.read(device, operands.c, number)).transpose()?;
            // Element [row, column] of a factor, after it was transposed.
            let at = |of: &Matrices, is_transposed: bool, [row, column]: [usize; 2]| {
                if is_transposed { column + row * of.leading } else { row + column * of.leading }
            };
            for column in 0..d.columns {
                let sums = (0..d.rows).map(|row| {
                    let terms = (0..depth).map(|k| {
                        let x = of_a[at(a, transposes[0], [row, k])];
                        x * of_b[at(b, transposes[1], [k, column])]
                    });
                    let product = f64::from(operands.alpha) * terms.sum::<f64>();
                    let added = of_c.as_ref().map_or(0.0, |of_c| of_c[row + column * c.leading]);
                    product + f64::from(operands.beta) * added + bias[row]
                });
                let sums = Tensor::floats(vector(d.dtype, d.rows), sums.collect()).rounded();
                device.upload(operands.d + d.at(number, column), &sums.to_bytes())?;
            }
        }
        Ok(())
    }
}
