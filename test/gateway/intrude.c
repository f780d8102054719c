/*-------------------------------------------------------------------------
 *
 * intrude.c
 *		Makes the gateway's process do system calls.
 *
 * By ptrace: the process is stopped in its loop, in a system call, so that the
 * instruction for one is right before its program counter.  For each call the
 * registers are set, one step is made, and the result is read.  The kernel cannot
 * tell this from the process' own calls, so its filters decide as they would.
 * Arguments that are memory lie far below the end of its stack.
 *
 *-------------------------------------------------------------------------
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "intrude.h"

#if defined(__x86_64__)
typedef struct user_regs_struct Registers;
#define INSTRUCTION_SIZE  2
#define PROGRAM_COUNTER(r) ((r)->rip)
#define STACK_POINTER(r)   ((r)->rsp)
#elif defined(__aarch64__)
typedef struct user_regs_struct Registers;
#define INSTRUCTION_SIZE  4
#define PROGRAM_COUNTER(r) ((r)->pc)
#define STACK_POINTER(r)   ((r)->sp)
#else
#error "registers of this architecture are missing here"
#endif

/* Below the stack's end */
#define ROOM (24 * 1024)

static pid_t victim;
static int memory = -1;
static Registers saved;
static size_t used;
static int ended;

static void
GetRegisters(Registers *registers)
{
	struct iovec part = {registers, sizeof(*registers)};

	if (ptrace(PTRACE_GETREGSET, victim, NT_PRSTATUS, &part) < 0)
		Die("could not read registers");
}

static void
SetRegisters(Registers *registers)
{
	struct iovec part = {registers, sizeof(*registers)};

	if (ptrace(PTRACE_SETREGSET, victim, NT_PRSTATUS, &part) < 0)
		Die("could not set registers");
}

bool
IntrudeBegin(pid_t pid)
{
	char path[64];
	unsigned char instruction[INSTRUCTION_SIZE];
	int status;

	if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0)
		return false;
	victim = pid;
	ended = 0;
	used = 0;
	if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0 || waitpid(pid, &status, __WALL) != pid ||
		!WIFSTOPPED(status))
		Die("could not stop process %d", (int) pid);
	snprintf(path, sizeof(path), "/proc/%d/mem", (int) pid);
	memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0)
		Die("could not open %s", path);
	GetRegisters(&saved);
	if (pread(memory, instruction, sizeof(instruction),
			  (off_t) (PROGRAM_COUNTER(&saved) - INSTRUCTION_SIZE)) != sizeof(instruction))
		Die("could not read instructions");
#if defined(__x86_64__)
	if (instruction[0] != 0x0f || instruction[1] != 0x05)
#else
	if (memcmp(instruction, "\x01\x00\x00\xd4", 4) != 0)
#endif
		Die("process %d is not in a system call", (int) pid);
	return true;
}

void
IntrudeEnd(void)
{
	if (ended == 0)
	{
		SetRegisters(&saved);
		if (ptrace(PTRACE_DETACH, victim, 0, 0) < 0)
			Die("could not let process %d go on", (int) victim);
	}
	close(memory);
	memory = -1;
}

long
IntrudePut(const void *data, size_t length)
{
	long address = (long) ((STACK_POINTER(&saved) - ROOM) & ~15UL) + (long) used;

	if (used + length > ROOM - 1024)
		Die("there is no room for %zu bytes", length);
	if (pwrite(memory, data, length, (off_t) address) != (ssize_t) length)
		Die("could not write to the process' stack");
	used += (length + 15) & ~(size_t) 15;
	return address;
}

long
IntrudeCall(long number, long a, long b, long c, long d, long e, long f)
{
	Registers registers = saved;
	int status;

	used = 0;
	if (ended != 0)
		Die("the process has ended");
	PROGRAM_COUNTER(&registers) -= INSTRUCTION_SIZE;
#if defined(__x86_64__)
	registers.orig_rax = (unsigned long) -1;
	registers.rax = (unsigned long) number;
	registers.rdi = (unsigned long) a;
	registers.rsi = (unsigned long) b;
	registers.rdx = (unsigned long) c;
	registers.r10 = (unsigned long) d;
	registers.r8 = (unsigned long) e;
	registers.r9 = (unsigned long) f;
#else
	{
		const long arguments[] = {a, b, c, d, e, f};
		int i;

		for (i = 0; i < 6; i++)
			registers.regs[i] = (unsigned long) arguments[i];
		registers.regs[8] = (unsigned long) number;
	}
#endif
	SetRegisters(&registers);
	if (ptrace(PTRACE_SINGLESTEP, victim, 0, 0) < 0 || waitpid(victim, &status, __WALL) != victim)
		Die("could not make process %d do a system call", (int) victim);
	if (!WIFSTOPPED(status))
	{
		ended = WIFSIGNALED(status) ? WTERMSIG(status) : -1;
		return 0;
	}
	if (WSTOPSIG(status) == SIGSYS)
	{
		/* A filter has had enough; it dies of it when it goes on. */
		if (ptrace(PTRACE_CONT, victim, 0, WSTOPSIG(status)) < 0 ||
			waitpid(victim, &status, __WALL) != victim || WIFSTOPPED(status))
			Die("process %d goes on behind a signal that ends it", (int) victim);
		ended = WIFSIGNALED(status) ? WTERMSIG(status) : -1;
		return 0;
	}
	if (WSTOPSIG(status) != SIGTRAP)
		Die("process %d got signal %d in call %ld", (int) victim, WSTOPSIG(status), number);
	GetRegisters(&registers);
#if defined(__x86_64__)
	return (long) registers.rax;
#else
	return (long) registers.regs[0];
#endif
}

int
IntrudeEnded(void)
{
	return ended;
}
