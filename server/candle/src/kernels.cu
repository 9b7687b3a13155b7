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

// Tokens are drawn from logits with the bits of `Draw::token` in server/inference/src/sample: no multiplication is fused with an
// addition, and sums have its order.

// A row's draw, as kernels.rs writes it.
struct Draw {
  float scale;
  unsigned top_k;
  float top_p, floor;
  double at;
  float repetition, presence, frequency;
  // Its changed logits.
  unsigned first, count, unused;
};
// A logit that is changed first: what is added to it, and how often the answer has its token. `logit` is where it is kept.
struct Changed {
  unsigned token;
  float bias;
  unsigned count;
  float logit;
};
// In place of `count`: no penalty counts the token.
constexpr unsigned UNCOUNTED = ~0u;
// In place of `top_k`: the row is not drawn from.
constexpr unsigned NO_DRAW = ~0u;
// In place of a token: it takes the processor; and logits that are not finite.
constexpr unsigned UNDECIDED = ~0u, NOT_FINITE = ~0u - 1;
// Logits of a maximum, and of a sum of weights.
constexpr unsigned PEAK = 64, MASS = 256;
// The most tokens that are kept in a filtered draw, and the most that are sorted for them.
constexpr unsigned FEW = 64, MOST_SORTED = 4096;

__device__ inline bool is_limited(const Draw &draw, unsigned vocab) { return draw.top_k > 0 && draw.top_k < vocab; }

// `float::exp`.
__device__ inline float exact_exp(float x) {
  const float ROUND = 12582912.0f;
  float clamped = fminf(fmaxf(x, -87.0f), 88.0f);
  float rounded = __fadd_rn(__fmul_rn(clamped, 1.44269504088896340736f), ROUND);
  float n = __fsub_rn(rounded, ROUND);
  float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 355.0f / 512.0f)), __fmul_rn(n, -2.1219444e-4f));
  float p = 1.9875691e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5e-1f);
  float power = __uint_as_float((__float_as_uint(rounded) - __float_as_uint(ROUND) + 127u) << 23);
  float value = __fmul_rn(__fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f), power);
  return x < -87.0f ? 0.0f : value;
}

// `Heat::weight`.
__device__ inline float weight_of(float logit, float most, float scale) {
  return exact_exp(__fmul_rn(fmaxf(__fsub_rn(logit, most), -1e30f), scale));
}

__device__ inline float bounded(float x) { return fminf(fmaxf(x, -3.40282347e+38f), 3.40282347e+38f); }

// `Penalties::apply`. What is not finite stays so. A block has a row.
extern "C" __global__ void penalise(float *logits, const Draw *draws, Changed *changed, unsigned vocab) {
  Draw draw = draws[blockIdx.x];
  if (draw.top_k == NO_DRAW)
    return;
  for (unsigned i = threadIdx.x; i < draw.count; i += blockDim.x) {
    Changed one = changed[draw.first + i];
    if (one.token >= vocab)
      continue;
    float *at = logits + (size_t)blockIdx.x * vocab + one.token;
    float x = *at;
    changed[draw.first + i].logit = x;
    if (!isfinite(x))
      continue;
    if (one.bias != 0)
      x = bounded(__fadd_rn(x, one.bias));
    if (one.count != UNCOUNTED) {
      x = x > 0 ? __fdiv_rn(x, draw.repetition) : __fmul_rn(x, draw.repetition);
      if (one.count > 0)
        x = __fsub_rn(x, __fadd_rn(draw.presence, __fmul_rn(draw.frequency, (float)one.count)));
      // Not a number stays one.
      x = x == x ? bounded(x) : x;
    }
    *at = x;
  }
}

// The maximum of each PEAK logits; not a number where one of them is not finite. A warp has one of them.
extern "C" __global__ void survey(const float *logits, const Draw *draws, float *peaks, unsigned vocab) {
  unsigned row = blockIdx.y, count = (vocab + PEAK - 1) / PEAK, lane = threadIdx.x % 32;
  unsigned at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (draws[row].top_k == NO_DRAW || at >= count)
    return;
  float most = -INFINITY;
  bool is_finite = true;
  for (unsigned id = at * PEAK + lane; id < min((at + 1) * PEAK, vocab); id += 32) {
    float logit = logits[(size_t)row * vocab + id];
    is_finite &= isfinite(logit);
    most = fmaxf(most, logit);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  is_finite = __all_sync(~0u, is_finite);
  if (lane == 0)
    peaks[(size_t)row * count + at] = is_finite ? most : NAN;
}

// The maximum of a row, for each thread of a block; not a number stays one.
__device__ inline float most_of_row(const float *peaks, unsigned count, float *of_warps) {
  float most = -INFINITY;
  bool is_finite = true;
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
    is_finite &= peaks[i] == peaks[i];
    most = fmaxf(most, peaks[i]);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  if (threadIdx.x % 32 == 0)
    of_warps[threadIdx.x / 32] = most;
  is_finite = __syncthreads_and(is_finite);
  for (unsigned i = 0; i < blockDim.x / 32; i++)
    most = fmaxf(most, of_warps[i]);
  __syncthreads();
  return is_finite ? most : NAN;
}

// The sums of the weights of each MASS logits, where a draw needs them. Eight threads have one of them: each adds up every eighth weight.
extern "C" __global__ void weigh(const float *logits, const Draw *draws, const float *peaks, double *masses, unsigned vocab) {
  __shared__ float of_warps[32];
  unsigned row = blockIdx.y, count = (vocab + MASS - 1) / MASS, lane = threadIdx.x % 8;
  Draw draw = draws[row];
  if (draw.top_k == NO_DRAW || is_limited(draw, vocab))
    return;
  unsigned peak_count = (vocab + PEAK - 1) / PEAK;
  float most = most_of_row(peaks + (size_t)row * peak_count, peak_count, of_warps);
  unsigned at = blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8;
  unsigned from = min(at * MASS, vocab), length = min(MASS, vocab - from);
  const float *block = logits + (size_t)row * vocab + from;
  float own = 0;
  for (unsigned i = lane; i < length / 8 * 8; i += 8)
    own = __fadd_rn(own, weight_of(block[i], most, draw.scale));
  double mass = 0, rest = 0;
#pragma unroll
  for (int i = 0; i < 8; i++)
    mass = __dadd_rn(mass, (double)__shfl_sync(~0u, own, i, 8));
  for (unsigned i = length / 8 * 8; i < length; i++)
    rest = __dadd_rn(rest, (double)weight_of(block[i], most, draw.scale));
  if (lane == 0 && at < count)
    masses[(size_t)row * count + at] = __dadd_rn(mass, rest);
}

// Larger logits first, then lower ids.
__device__ inline unsigned long long sort_key(float logit, unsigned id) {
  unsigned bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)bits << 32 | ~id;
}

__device__ inline float key_logit(unsigned long long key) {
  unsigned bits = (unsigned)(key >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Sorts keys, largest first: a bitonic network over a power of two.
__device__ void sort_keys(unsigned long long *keys, unsigned count) {
  unsigned size = 1;
  while (size < count)
    size *= 2;
  for (unsigned i = count + threadIdx.x; i < size; i += blockDim.x)
    keys[i] = 0;
  for (unsigned width = 2; width <= size; width *= 2)
    for (unsigned step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (unsigned i = threadIdx.x; i < size / 2; i += blockDim.x) {
        unsigned a = 2 * i - (i & (step - 1)), b = a + step;
        bool is_descending = (a & width) == 0;
        unsigned long long first = keys[a], second = keys[b];
        if ((first < second) == is_descending) {
          keys[a] = second;
          keys[b] = first;
        }
      }
    }
  __syncthreads();
}

// The least of a number over all threads of a block.
__device__ inline unsigned least_of_block(unsigned x, unsigned *of_block) {
  if (threadIdx.x == 0)
    *of_block = ~0u;
  __syncthreads();
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = min(x, __shfl_xor_sync(~0u, x, offset));
  if (threadIdx.x % 32 == 0)
    atomicMin(of_block, x);
  __syncthreads();
  x = *of_block;
  __syncthreads();
  return x;
}

// The first token at which the running sum of all weights passes the draw: `pick_of`.
__device__ unsigned pick_of_all(const float *logits, const double *masses, Draw draw, float most, unsigned vocab, double *sums,
                                float *weights, unsigned *of_block) {
  unsigned count = (vocab + MASS - 1) / MASS;
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x)
    sums[i] = masses[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (unsigned i = 0; i < count; i++)
      sums[i] = sum = __dadd_rn(sum, sums[i]);
  }
  __syncthreads();
  double target = __dmul_rn(draw.at, sums[count - 1]);
  unsigned first = ~0u;
  for (unsigned i = threadIdx.x; i < count && first == ~0u; i += blockDim.x)
    if (sums[i] > target)
      first = i;
  first = least_of_block(first, of_block);
  double sum = first > 0 && first < count ? sums[first - 1] : 0;
  for (unsigned at = first; at < count; at++) {
    double mass = masses[at];
    // Only after a sum of weights has rounded otherwise than their mass.
    if (at > first && __dadd_rn(sum, mass) <= target) {
      sum = __dadd_rn(sum, mass);
      continue;
    }
    unsigned from = at * MASS, length = min(MASS, vocab - from);
    for (unsigned i = threadIdx.x; i < length; i += blockDim.x)
      weights[i] = weight_of(logits[from + i], most, draw.scale);
    __syncthreads();
    // Each thread finds the same one.
    for (unsigned i = 0; i < length; i++) {
      sum = __dadd_rn(sum, (double)weights[i]);
      if (weights[i] > 0 && sum > target)
        return from + i;
    }
    __syncthreads();
  }
  // The last that weighs anything.
  unsigned from_end = ~0u;
  for (unsigned i = threadIdx.x; i < vocab && from_end == ~0u; i += blockDim.x)
    if (weight_of(logits[vocab - 1 - i], most, draw.scale) > 0)
      from_end = i;
  from_end = least_of_block(from_end, of_block);
  return from_end < vocab ? vocab - 1 - from_end : 0;
}

// One of the likeliest: top-k, top-p and min-p as in `Draw::token`, where that keeps no more than FEW tokens.
__device__ unsigned pick_of_few(const float *logits, const float *peaks, const double *masses, Draw draw, float most, unsigned vocab,
                                unsigned long long *keys, float *weights, unsigned *ids, unsigned *of_block) {
  // The FEW-th largest maximum is a lower bound of the FEW-th largest logit.
  unsigned peak_count = (vocab + PEAK - 1) / PEAK;
  float bound = -INFINITY;
  if (peak_count >= FEW) {
    for (unsigned i = threadIdx.x; i < peak_count; i += blockDim.x)
      keys[i] = sort_key(peaks[i], i);
    sort_keys(keys, peak_count);
    bound = key_logit(keys[FEW - 1]);
  }
  __syncthreads();
  if (threadIdx.x == 0)
    *of_block = 0;
  __syncthreads();
  for (unsigned at = threadIdx.x / 32; at < peak_count; at += blockDim.x / 32) {
    if (peaks[at] < bound)
      continue;
    for (unsigned id = at * PEAK + threadIdx.x % 32; id < min((at + 1) * PEAK, vocab); id += 32)
      if (logits[id] >= bound) {
        unsigned place = atomicAdd(of_block, 1);
        if (place < MOST_SORTED)
          keys[place] = sort_key(logits[id], id);
      }
  }
  __syncthreads();
  unsigned found = *of_block;
  __syncthreads();
  if (found > MOST_SORTED)
    return UNDECIDED;
  sort_keys(keys, found);
  unsigned kept = min(found, FEW);
  bool limited = is_limited(draw, vocab);
  if (limited)
    kept = min(kept, draw.top_k);
  if (threadIdx.x < kept) {
    ids[threadIdx.x] = ~(unsigned)keys[threadIdx.x];
    weights[threadIdx.x] = weight_of(key_logit(keys[threadIdx.x]), most, draw.scale);
  }
  __syncthreads();
  bool by_id = !limited && draw.top_p >= 1;
  if (by_id) {
    // Weights of others may be a hair above that of a larger logit.
    if (kept < vocab && weights[kept - 1] >= draw.floor * 0.9999f)
      return UNDECIDED;
    unsigned place = 0, id = 0;
    float weight = 0;
    if (threadIdx.x < kept) {
      id = ids[threadIdx.x];
      weight = weights[threadIdx.x];
      for (unsigned i = 0; i < kept; i++)
        place += ids[i] < id;
    }
    __syncthreads();
    if (threadIdx.x < kept) {
      ids[place] = id;
      weights[place] = weight;
    }
    __syncthreads();
  }
  if (draw.top_p < 1) {
    double whole = 0, sum = 0;
    if (limited)
      for (unsigned i = 0; i < kept; i++)
        whole = __dadd_rn(whole, (double)weights[i]);
    else
      for (unsigned i = 0; i < (vocab + MASS - 1) / MASS; i++)
        whole = __dadd_rn(whole, masses[i]);
    double wanted = __dmul_rn((double)draw.top_p, whole);
    unsigned count = 0;
    while (count < kept && (count == 0 || sum < wanted))
      sum = __dadd_rn(sum, (double)weights[count++]);
    if (sum < wanted && !limited)
      return UNDECIDED;
    kept = count;
  }
  double sum = 0;
  for (unsigned i = 0; i < kept; i++)
    if (weights[i] >= draw.floor)
      sum = __dadd_rn(sum, (double)weights[i]);
  double target = __dmul_rn(draw.at, sum);
  unsigned last = 0;
  sum = 0;
  for (unsigned i = 0; i < kept; i++) {
    if (weights[i] < draw.floor)
      continue;
    sum = __dadd_rn(sum, (double)weights[i]);
    if (weights[i] > 0) {
      last = ids[i];
      if (sum > target)
        break;
    }
  }
  return last;
}

// The token of each row, or why there is none: the logits are as they were then. A block has a row.
extern "C" __global__ void pick(float *logits, const Draw *draws, const Changed *changed, const float *peaks, const double *masses,
                                unsigned *tokens, unsigned vocab) {
  __shared__ unsigned long long words[MOST_SORTED];
  __shared__ float weights[MASS];
  __shared__ unsigned ids[FEW];
  __shared__ float of_warps[32];
  __shared__ unsigned of_block;
  size_t row = blockIdx.x;
  unsigned peak_count = (vocab + PEAK - 1) / PEAK;
  Draw draw = draws[row];
  logits += row * vocab;
  peaks += row * peak_count;
  masses += row * ((vocab + MASS - 1) / MASS);
  unsigned token = UNDECIDED;
  if (draw.top_k != NO_DRAW) {
    float most = most_of_row(peaks, peak_count, of_warps);
    if (most != most) {
      token = NOT_FINITE;
    } else if (draw.top_k == 1) {
      unsigned first = ~0u;
      for (unsigned i = threadIdx.x; i < peak_count && first == ~0u; i += blockDim.x)
        if (peaks[i] == most)
          first = i;
      first = least_of_block(first, &of_block) * PEAK;
      unsigned id = first + threadIdx.x;
      token = least_of_block(threadIdx.x < PEAK && id < vocab && logits[id] == most ? id : ~0u, &of_block);
    } else if (is_limited(draw, vocab) || draw.top_p < 1 || draw.floor > 0) {
      token = pick_of_few(logits, peaks, masses, draw, most, vocab, words, weights, ids, &of_block);
    } else {
      token = pick_of_all(logits, masses, draw, most, vocab, (double *)words, weights, &of_block);
    }
  }
  if (draw.top_k != NO_DRAW && token == UNDECIDED) {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < draw.count; i += blockDim.x) {
      Changed one = changed[draw.first + i];
      if (one.token < vocab)
        logits[one.token] = one.logit;
    }
  }
  if (threadIdx.x == 0)
    tokens[row] = token;
}
