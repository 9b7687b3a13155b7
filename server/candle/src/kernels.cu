// What a step does to all rows at once where candle computes one sequence at a time or launches several kernels. The launches are in
// kernels.rs. Everything is computed in f32, whatever its dtype is.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned long long Address;

__device__ inline float read(float x) { return x; }
__device__ inline float read(__half x) { return __half2float(x); }
__device__ inline float read(__nv_bfloat16 x) { return __bfloat162float(x); }

// The types of numbers, as kernels.rs counts them: f32, f16, bf16.
__device__ inline float read(const void *numbers, size_t at, unsigned type) {
  switch (type) {
  case 0: return ((const float *)numbers)[at];
  case 1: return read(((const __half *)numbers)[at]);
  default: return read(((const __nv_bfloat16 *)numbers)[at]);
  }
}

__device__ inline void write(void *numbers, size_t at, unsigned type, float x) {
  switch (type) {
  case 0: ((float *)numbers)[at] = x; break;
  case 1: ((__half *)numbers)[at] = __float2half(x); break;
  default: ((__nv_bfloat16 *)numbers)[at] = __float2bfloat16(x);
  }
}

// A row: which sequence of the pass it belongs to, its position there, and how many positions the sequence can have.
struct Row {
  unsigned sequence, position, capacity;
};

// RoPE of queries and keys; keys and values go into the KV caches of their sequences. A block has one head of one row.
extern "C" __global__ void rope_and_store(const void *qkv, unsigned type, float *queries, const float *cosines, const float *sines,
                                 const Address *caches, unsigned kept_type, const Row *rows, unsigned heads, unsigned kv_heads,
                                 unsigned width, unsigned rotated, unsigned interleaved) {
  size_t at = blockIdx.x;
  unsigned head = blockIdx.y, half = rotated / 2;
  size_t from = (at * (heads + 2 * kv_heads) + head) * width, to = 0;
  Row row = rows[at];
  void *cache = nullptr;
  if (head >= heads) {
    unsigned kv = (head - heads) % kv_heads, is_value = (head - heads) / kv_heads;
    cache = (void *)caches[2 * row.sequence + is_value];
    to = ((size_t)kv * row.capacity + row.position) * width;
  }
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x) {
    float x = read(qkv, from + d, type);
    if (head < heads + kv_heads && d < rotated) {
      bool is_first = interleaved ? d % 2 == 0 : d < half;
      unsigned pair = interleaved ? d / 2 : d % half;
      unsigned other = interleaved ? d ^ 1 : is_first ? d + half : d - half;
      float turned = read(qkv, from + other, type) * sines[at * half + pair];
      x = x * cosines[at * half + pair] + (is_first ? -turned : turned);
    }
    if (cache)
      write(cache, to + d, kept_type, x);
    else
      queries[(at * heads + head) * width + d] = x;
  }
}

constexpr int EACH = 8;
extern __shared__ float shared[];

template <typename C>
__device__ inline void read_part(const C *row, unsigned from, unsigned width, bool is_aligned, float *numbers) {
  if (is_aligned && from < width) {
    constexpr int WORDS = EACH * sizeof(C) / 16;
    uint4 words[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++)
      words[i] = ((const uint4 *)(row + from))[i];
    const C *parts = (const C *)words;
#pragma unroll
    for (int e = 0; e < EACH; e++)
      numbers[e] = read(parts[e]);
    return;
  }
#pragma unroll
  for (int e = 0; e < EACH; e++)
    numbers[e] = from + e < width ? read(row[from + e]) : 0.0f;
}

// The maximum of several parts. Not a number stays one.
__device__ inline float joined_most(const float *of_most, size_t stride, unsigned count) {
  float most = -INFINITY;
  for (unsigned i = 0; i < count; i++) {
    float own = of_most[i * stride];
    most = own == own && most == most ? fmaxf(most, own) : NAN;
  }
  return most;
}

// By what a part with its own maximum counts; one without positions has none.
__device__ inline float share_of(float own, float most) { return own == -INFINITY ? 0.0f : expf(own - most); }

// Attention of decode rows over the KV caches of their sequences. A block has one head of one row and one of `splits` parts of its
// positions; each group of LANES threads takes every n-th of them with an online softmax (https://arxiv.org/abs/1805.02867), and the
// groups are joined at the end. With several parts, each leaves its maximum, its total and its sums in `parts`, and `join` joins them.
template <typename C, int LANES>
__device__ void attend(const float *queries, void *mixed, unsigned type, float *parts, const Address *caches, const Row *rows,
                       const unsigned *singles, const float *biases, unsigned bias_stride, unsigned heads, unsigned kv_heads,
                       unsigned width, unsigned window, float scale, float cap) {
  size_t at = singles[blockIdx.x];
  unsigned head = blockIdx.y, splits = gridDim.z;
  Row row = rows[at];
  size_t first = (size_t)(head / (heads / kv_heads)) * row.capacity * width;
  const C *keys = (const C *)caches[2 * row.sequence] + first;
  const C *values = (const C *)caches[2 * row.sequence + 1] + first;
  unsigned end = row.position + 1, start = window && end > window ? end - window : 0;
  unsigned each = (end - start + splits - 1) / splits;
  start = min(start + blockIdx.z * each, end);
  end = min(start + each, end);
  unsigned group = threadIdx.x / LANES, groups = blockDim.x / LANES, part = threadIdx.x % LANES * EACH;
  unsigned mask = LANES == 32 ? ~0u : ((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES);
  bool is_aligned = width % EACH == 0;

  float query[EACH], sums[EACH], most = -INFINITY, total = 0;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    query[e] = part + e < width ? queries[(at * heads + head) * width + part + e] * scale : 0.0f;
    sums[e] = 0;
  }
  for (unsigned position = start + group; position < end; position += groups) {
    float key[EACH], value[EACH], score = 0;
    read_part(keys + (size_t)position * width, part, width, is_aligned, key);
    read_part(values + (size_t)position * width, part, width, is_aligned, value);
#pragma unroll
    for (int e = 0; e < EACH; e++)
      score += query[e] * key[e];
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
      score += __shfl_xor_sync(mask, score, offset);
    if (cap > 0)
      score = cap * tanhf(score / cap);
    if (biases)
      score += biases[(size_t)head * bias_stride + position];
    float next = fmaxf(most, score), kept = expf(most - next), share = expf(score - next);
    total = total * kept + share;
#pragma unroll
    for (int e = 0; e < EACH; e++)
      sums[e] = sums[e] * kept + share * value[e];
    // Not a number stays one.
    most = score == score ? next : score;
  }
  float *of_most = shared, *of_total = shared + groups, *of_sums = shared + 2 * groups;
  if (part == 0) {
    of_most[group] = most;
    of_total[group] = total;
  }
#pragma unroll
  for (int e = 0; e < EACH; e++)
    if (part + e < width)
      of_sums[(size_t)group * width + part + e] = sums[e];
  __syncthreads();
  float *left = parts + (((size_t)blockIdx.x * heads + head) * splits + blockIdx.z) * (width + 2);
  most = joined_most(of_most, 1, groups);
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x) {
    float sum = 0, whole = 0;
    for (unsigned i = 0; i < groups; i++) {
      float share = share_of(of_most[i], most);
      whole += share * of_total[i];
      sum += share * of_sums[(size_t)i * width + d];
    }
    if (splits == 1) {
      write(mixed, (at * heads + head) * width + d, type, sum / whole);
    } else {
      left[2 + d] = sum;
      if (d == 0) {
        left[0] = most;
        left[1] = whole;
      }
    }
  }
}

#define ATTEND(C, c, LANES)                                                                                                             \
  extern "C" __global__ void attend_##c##_##LANES(const float *queries, void *mixed, unsigned type, float *parts,                      \
                                                  const Address *caches, const Row *rows, const unsigned *singles,                     \
                                                  const float *biases, unsigned bias_stride, unsigned heads, unsigned kv_heads,        \
                                                  unsigned width, unsigned window, float scale, float cap) {                           \
    attend<C, LANES>(queries, mixed, type, parts, caches, rows, singles, biases, bias_stride, heads, kv_heads, width, window, scale,    \
                    cap);                                                                                                              \
  }
#define ATTEND_OVER(C, c) ATTEND(C, c, 8) ATTEND(C, c, 16) ATTEND(C, c, 32)
ATTEND_OVER(float, f32)
ATTEND_OVER(__half, f16)
ATTEND_OVER(__nv_bfloat16, bf16)

// Joins the parts that `attend` left. A block has one head of one decode row.
extern "C" __global__ void join(const float *parts, void *mixed, unsigned type, const unsigned *singles, unsigned splits, unsigned heads,
                                unsigned width) {
  size_t at = singles[blockIdx.x], stride = width + 2;
  unsigned head = blockIdx.y;
  const float *left = parts + ((size_t)blockIdx.x * heads + head) * splits * stride;
  float most = joined_most(left, stride, splits);
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x) {
    float sum = 0, whole = 0;
    for (unsigned i = 0; i < splits; i++) {
      float share = share_of(left[i * stride], most);
      whole += share * left[i * stride + 1];
      sum += share * left[i * stride + 2 + d];
    }
    write(mixed, (at * heads + head) * width + d, type, sum / whole);
  }
}

// The gate's outputs, activated, times those beside them. The numbers of `activation` are in kernels.rs.
extern "C" __global__ void gate(const void *up, void *inner, unsigned type, unsigned ffn, unsigned activation) {
  unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= ffn)
    return;
  size_t from = (size_t)blockIdx.y * 2 * ffn + column;
  float x = read(up, from, type), y;
  switch (activation) {
  case 0: y = 0.5f * x * (1 + erff(x * 0.70710678f)); break;
  case 1: y = 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); break;
  case 2: y = fmaxf(x, 0.0f); break;
  default: y = x / (1 + expf(-x));
  }
  write(inner, (size_t)blockIdx.y * ffn + column, type, y * read(up, from + ffn, type));
}

// The sum over all threads of a block, for each of them.
__device__ inline float sum_of_block(float x, float *of_warps) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x += __shfl_xor_sync(~0u, x, offset);
  if (threadIdx.x % 32 == 0)
    of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (unsigned i = 0; i < blockDim.x / 32; i++)
    x += of_warps[i];
  __syncthreads();
  return x;
}

// Adds what a part of a layer says to the residual stream, and normalises the sum. Without `more` nothing is added, and `sums` is not
// written; without `normed` nothing is normalised. A block has one row.
extern "C" __global__ void add_norm(const float *stream, const void *more, unsigned more_type, float *sums, const float *weight,
                                    const float *bias, void *normed, unsigned normed_type, unsigned width, unsigned is_rms,
                                    float epsilon) {
  __shared__ float of_warps[32];
  const float *row = (more ? sums : stream) + (size_t)blockIdx.x * width;
  size_t from = (size_t)blockIdx.x * width;
  float total = 0;
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x) {
    float x = stream[from + d];
    if (more) {
      x += read(more, from + d, more_type);
      sums[from + d] = x;
    }
    total += x;
  }
  if (!normed)
    return;
  // Each thread reads what it wrote.
  float mean = is_rms ? 0 : sum_of_block(total, of_warps) / width, squares = 0;
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x)
    squares += (row[d] - mean) * (row[d] - mean);
  float factor = rsqrtf(sum_of_block(squares, of_warps) / width + epsilon);
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x)
    write(normed, from + d, normed_type, (row[d] - mean) * factor * weight[d] + bias[d]);
}

// Rows of the table of tokens as the residual stream. A block has one row.
extern "C" __global__ void embed(const void *table, unsigned type, const unsigned *tokens, float *stream, unsigned width) {
  for (unsigned d = threadIdx.x; d < width; d += blockDim.x)
    stream[(size_t)blockIdx.x * width + d] = read(table, (size_t)tokens[blockIdx.x] * width + d, type);
}

// Numbers of any type as f32.
extern "C" __global__ void widen(const void *from, unsigned type, float *to, unsigned long long count) {
  for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (size_t)gridDim.x * blockDim.x)
    to[at] = read(from, at, type);
}
