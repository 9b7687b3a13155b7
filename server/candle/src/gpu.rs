//! NVIDIA's GPUs: which one there is, how much of its memory is free, and a stream of it for each model.

use candle_core::Device;
use std::sync::{Mutex, PoisonError};

/// A GPU that models can compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its model: `Tesla T4`.
    pub name: String,
    /// Its memory in bytes.
    pub total: u64,
    /// Of it, what a model may take: what is free, less a reserve.
    pub available: u64,
    /// Of it, what all processes have taken from the driver, with what they keep without using it.
    pub used: u64,
}

/// What stays free: modules of kernels, the workspace of cuBLAS, activations, and joined matrices while a model is
/// loaded. On an H100 a server took 0.75 GB beside weights, keys and values, of which the context of the driver was
/// there before this memory was read.
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

/// A device of candle: a stream of a GPU, in which everything of one model is. candle keeps workspaces for each device
/// for ever, so that those of models that are gone are used again.
pub(crate) struct Lease {
    number: usize,
    device: Device,
}

/// Devices that no model uses, with the numbers of their GPUs.
static FREE: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());

impl Lease {
    /// A device on the GPU of this number.
    pub(crate) fn open(number: usize) -> candle_core::Result<Lease> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match free.iter().position(|(of, _)| *of == number) {
            Some(index) => free.swap_remove(index).1,
            None => new_device(number)?,
        };
        Ok(Lease { number, device })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push((self.number, self.device.clone()));
    }
}

#[cfg(feature = "cuda")]
fn new_device(number: usize) -> candle_core::Result<Device> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    // It waits for all streams.
    let device = crate::graph::outside_recordings(|| Device::new_cuda_with_stream(number))?;
    let of_gpu = device.as_cuda_device()?;
    let mut keep = u64::MAX;
    let stream = of_gpu.cuda_stream();
    #[allow(unsafe_code)]
    // SAFETY: everything of this device is in its one stream, which orders it, and nothing of it is used on another
    // one.
    unsafe {
        of_gpu.disable_event_tracking();
    }
    // Some virtual GPUs have no pool.
    if stream.context().has_async_alloc() {
        #[allow(unsafe_code)]
        // SAFETY: the attribute is a number of 64 bits, which is read in the call
        // (https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MALLOC__ASYNC.html).
        let kept = unsafe {
            // Else each step that is waited for returns the memory of its activations to the driver, and the next one
            // asks for it again.
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::device::get_default_mem_pool(stream.context().cu_device())
                .and_then(|pool| sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast()).result())
        };
        kept.map_err(candle_core::Error::wrap)?;
    }
    crate::kernels::load(of_gpu)?;
    Ok(device)
}

/// This build has no kernels for GPUs.
#[cfg(not(feature = "cuda"))]
fn new_device(number: usize) -> candle_core::Result<Device> {
    Device::new_cuda(number)
}

/// Bytes that this process keeps of a GPU and does not use: they are free for its models.
#[cfg(feature = "cuda")]
fn kept_free(
    device: candle_core::cuda_backend::cudarc::driver::sys::CUdevice,
) -> Result<u64, candle_core::cuda_backend::cudarc::driver::DriverError> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let read = |attribute| {
        let mut bytes = 0u64;
        #[allow(unsafe_code)]
        // SAFETY: the attributes are numbers of 64 bits, which are written in the call.
        let answer = unsafe {
            result::device::get_default_mem_pool(device)
                .and_then(|pool| sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result())
        };
        answer.map(|()| bytes)
    };
    let reserved = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    Ok(reserved.saturating_sub(read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?))
}

/// One product and one sum: the first needs the libraries, and a driver that is too old refuses the kernels of the
/// second.
#[cfg(feature = "cuda")]
fn compute(number: usize) -> candle_core::Result<f32> {
    let lease = Lease::open(number)?;
    let one = candle_core::Tensor::ones((1, 1), candle_core::DType::F32, lease.device())?;
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
        use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, sys};
        use sys::CUresult;

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
        let kept = if context.has_async_alloc() { kept_free(context.cu_device()).map_err(of_driver)? } else { 0 };
        let (free, total) = context.mem_get_info().map_err(of_driver)?;
        let (free, total) = (free as u64, total as u64);
        let available = free.saturating_add(kept).saturating_sub(RESERVE);
        Ok(Gpu { name, total, available, used: total.saturating_sub(free) })
    }

    /// Why the GPU of this number computes nothing more for this process; `None` where it does. After a fault in a
    /// kernel, of the memory or of the GPU itself, each further call fails until the process is started again
    /// (<https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html>, such as `CUDA_ERROR_ILLEGAL_ADDRESS`).
    /// Other errors concern one call, so that the next one tells them apart.
    #[cfg(feature = "cuda")]
    pub fn fault(number: usize) -> Option<String> {
        use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys::CUresult};

        // It is the context of the models, and remembers no error of another handle.
        let waited = || CudaContext::new(number).and_then(|context| context.synchronize());
        match crate::graph::outside_recordings(waited) {
            Ok(()) => None,
            // Before the first model the context is a new one, in memory that others may have.
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
