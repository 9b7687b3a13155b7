//! NVIDIA's GPUs: which one there is, and how much of its memory is free.

/// A GPU that models can compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its model: `Tesla T4`.
    pub name: String,
    /// Its memory in bytes.
    pub total: u64,
    /// Of it, what a model may take: what is free, less a reserve.
    pub available: u64,
}

/// What stays free: modules of kernels, the workspace of cuBLAS, and joined matrices while a model is loaded. It was not measured on a
/// GPU.
#[cfg(feature = "cuda")]
const RESERVE: u64 = 512 << 20;

/// The compute capability that the kernels were compiled for, such as `75`; `server/cuda/build` sets it.
#[cfg(feature = "cuda")]
fn built_for() -> Option<i32> {
    option_env!("CUDA_COMPUTE_CAP")?.parse().ok()
}

/// Whether GPUs multiply in bf16: Ampere and newer do, and only kernels that were compiled for them.
#[cfg(feature = "cuda")]
pub(crate) fn has_bf16() -> bool {
    built_for().is_some_and(|built| built >= 80)
}

/// Whether GPUs multiply in bf16: there are none in this build.
#[cfg(not(feature = "cuda"))]
pub(crate) fn has_bf16() -> bool {
    false
}

/// One product and one sum: the first needs the libraries, and a driver that is too old refuses the kernels of the second.
#[cfg(feature = "cuda")]
fn compute(number: usize) -> candle_core::Result<f32> {
    let device = candle_core::Device::new_cuda(number)?;
    let one = candle_core::Tensor::ones((1, 1), candle_core::DType::F32, &device)?;
    one.matmul(&one)?.affine(2.0, 1.0)?.flatten_all()?.get(0)?.to_scalar()
}

impl Gpu {
    /// The GPU of this number, or why no model can compute on it.
    pub fn find(number: usize) -> Result<Gpu, String> {
        let gpu = Gpu::read(number)?;
        #[cfg(feature = "cuda")]
        compute(number).map_err(|error| {
            format!(
                "the GPU does not compute: {error}; it needs a driver for CUDA 13 (580 or newer), and the image needs libcublas, \
                 libcublasLt and libcurand of CUDA 13"
            )
        })?;
        Ok(gpu)
    }

    /// What there is now of the GPU of this number.
    #[cfg(feature = "cuda")]
    pub fn read(number: usize) -> Result<Gpu, String> {
        use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, sys::CUresult};

        let of_driver = |error: DriverError| match error.0 {
            // What `server/cuda/lazy.c` answers where the library is missing.
            CUresult::CUDA_ERROR_STUB_LIBRARY => {
                "NVIDIA's driver (libcuda.so.1) is not here: install it, or give the container access to a GPU"
                    .to_owned()
            }
            CUresult::CUDA_ERROR_NO_DEVICE => "NVIDIA's driver finds no GPU".to_owned(),
            _ => format!("NVIDIA's driver answers: {error}"),
        };
        let count = usize::try_from(CudaContext::device_count().map_err(of_driver)?).unwrap_or(0);
        if number >= count {
            return Err(format!("the count of GPUs is {count}, and they are numbered from 0"));
        }
        let context = CudaContext::new(number).map_err(of_driver)?;
        let name = context.name().map_err(of_driver)?;
        let (major, minor) = context.compute_capability().map_err(of_driver)?;
        if let Some(built) = built_for().filter(|built| major * 10 + minor < *built) {
            return Err(format!(
                "{name} has compute capability {major}.{minor}, and this program was built for {}.{} and newer: \
                 build it with `CUDA_COMPUTE_CAP={major}{minor} bash server/cuda/build`",
                built / 10,
                built % 10
            ));
        }
        // Memory that was freed in a stream returns to the GPU only then
        // (https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MALLOC__ASYNC.html, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD).
        context.synchronize().map_err(of_driver)?;
        let (free, total) = context.mem_get_info().map_err(of_driver)?;
        Ok(Gpu { name, total: total as u64, available: (free as u64).saturating_sub(RESERVE) })
    }

    /// Why the GPU of this number computes nothing more for this process; `None` where it does. After a fault in a kernel, of the
    /// memory or of the GPU itself, each further call fails until the process is started again
    /// (<https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html>, such as `CUDA_ERROR_ILLEGAL_ADDRESS`). Other errors
    /// concern one call, so that the next one tells them apart.
    #[cfg(feature = "cuda")]
    pub fn fault(number: usize) -> Option<String> {
        use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys::CUresult};

        // It is the context of the models, and remembers no error of another handle.
        match CudaContext::new(number).and_then(|context| context.synchronize()) {
            Ok(()) => None,
            // Without a loaded model the context is a new one, in memory that others may have.
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => None,
            Err(error) => Some(format!("GPU {number} fails in each call: {error}")),
        }
    }

    /// Why the GPU of this number computes nothing more for this process: this build never uses one.
    #[cfg(not(feature = "cuda"))]
    pub fn fault(_number: usize) -> Option<String> {
        None
    }

    /// What there is now of the GPU of this number: this build has no kernels for GPUs.
    #[cfg(not(feature = "cuda"))]
    pub fn read(_number: usize) -> Result<Gpu, String> {
        Err("this program was built without CUDA: use one that `server/cuda/build` made".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a driver, with one, and in a build without CUDA: no machine has so many GPUs.
    #[test]
    fn gpu_that_is_not_here_is_refused_by_a_sentence() {
        let refused = Gpu::find(999).unwrap_err();
        let causes = ["built without CUDA", "(libcuda.so.1) is not here", "finds no GPU", "the count of GPUs is"];
        assert!(causes.iter().any(|cause| refused.contains(cause)), "{refused}");
    }
}
