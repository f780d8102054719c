/*-------------------------------------------------------------------------
 *
 * fail.h
 *		How a target says what it has found: libFuzzer keeps the input.
 *
 * For the targets of the gateway and those in the server alike.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_FAIL_H
#define FUZZ_FAIL_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* A property does not hold. */
static inline void Fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static inline void
Fail(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "fuzz: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\n");
	abort();
}

#endif
