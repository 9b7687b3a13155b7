/* The functions of one of NVIDIA's libraries, which is loaded at the first call. candle links these libraries, and a program that needs
 * them to start would not start where there is no driver: where its jobs and its command line run. `build` compiles this for each
 * library, with its file, the names of its functions, and the status that they answer where it is missing. */

#include <dlfcn.h>
#include <string.h>

/* By the calling convention of x86-64, r10 and r11 are free between caller and function. A slot holds the function, and at first what
 * finds it. */
#define SYMBOL(name)                                     \
  __asm__(".pushsection .data.lazy,\"aw\"\n"             \
          ".balign 8\n"                                  \
          "slot_" #name ": .quad first_" #name "\n"      \
          ".popsection\n"                                \
          ".pushsection .rodata.lazy,\"a\"\n"            \
          "text_" #name ": .asciz \"" #name "\"\n"       \
          ".popsection\n"                                \
          ".pushsection .text.lazy,\"ax\"\n"             \
          ".globl " #name "\n"                           \
          ".type " #name ",@function\n"                  \
          #name ": jmp *slot_" #name "(%rip)\n"          \
          "first_" #name ": lea slot_" #name "(%rip), %r10\n" \
          "lea text_" #name "(%rip), %r11\n"             \
          "jmp find\n"                                   \
          ".popsection\n");
#include SYMBOLS

/* Keeps the arguments of the call that waits. The stack is aligned to 16 bytes before a call. */
__asm__(".pushsection .text.lazy,\"ax\"\n"
        "find: push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9\n"
        "sub $136, %rsp\n"
        "movups %xmm0, 0(%rsp); movups %xmm1, 16(%rsp); movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)\n"
        "movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp); movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)\n"
        "mov %r10, %rdi; mov %r11, %rsi\n"
        "call found\n"
        "mov %rax, %r11\n"
        "movups 0(%rsp), %xmm0; movups 16(%rsp), %xmm1; movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3\n"
        "movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5; movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7\n"
        "add $136, %rsp\n"
        "pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi\n"
        "jmp *%r11\n"
        ".popsection\n");

static int missing(void) { return MISSING; }

static const char *missing_text(void) { return LIBRARY " or one of its functions is missing"; }

__attribute__((used)) static void *found(void **slot, const char *name) {
  /* Counts its openings: every thread may come here. */
  void *library = dlopen(LIBRARY, RTLD_NOW);
  void *function = library ? dlsym(library, name) : NULL;
  if (function) {
    __atomic_store_n(slot, function, __ATOMIC_RELEASE);
    return function;
  }
  /* These answer with a text. */
  int is_text = strstr(name, "GetStatus") != NULL || strcmp(name, "nvrtcGetErrorString") == 0;
  return is_text ? (void *)missing_text : (void *)missing;
}
