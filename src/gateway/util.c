/*-------------------------------------------------------------------------
 *
 * util.c
 *		Log lines, memory, buffers, UTF-8.
 *
 * Log lines go to stderr, which is the server's; one write() per line, so
 * that lines of several processes do not mix.  What clients send (tokens above
 * all) is never logged.
 *
 * Process: gateway.  Memory: no allocation here returns NULL; running out of
 * memory ends the process, because nothing of value is lost with it and a
 * half-written frame would be worse.
 *
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway.h"

static void
WriteLine(LogLevel level, const char *format, va_list args)
{
	static const char *const names[] = {"LOG", "WARNING", "FATAL"};
	char line[1024];
	int n;
	int m;

	n = snprintf(line, sizeof(line) - 1, GATEWAY_NAME "[%d]: %s: ", (int) getpid(), names[level]);
	m = vsnprintf(line + n, sizeof(line) - 1 - (size_t) n, format, args);
	if (m > 0)
		n += m;
	if (n > (int) sizeof(line) - 2)
		n = (int) sizeof(line) - 2;
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, (size_t) n) < 0)
		return; /* nobody left to tell */
}

void
GatewayLog(LogLevel level, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	WriteLine(level, format, args);
	va_end(args);
}

void
GatewayFatal(int exit_code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	WriteLine(LEVEL_FATAL, format, args);
	va_end(args);
	_exit(exit_code);
}

void *
GatewayAlloc(size_t size)
{
	return GatewayRealloc(NULL, size);
}

void *
GatewayAllocZero(size_t size)
{
	return memset(GatewayRealloc(NULL, size), 0, size);
}

void *
GatewayRealloc(void *p, size_t size)
{
	void *grown = realloc(p, size > 0 ? size : 1);

	if (grown == NULL)
	{
		GatewayLog(LEVEL_FATAL, "out of memory: %zu bytes", size);
		abort();
	}
	return grown;
}

void
BufferReserve(Buffer *buffer, size_t n)
{
	size_t capacity = buffer->capacity > 0 ? buffer->capacity : 256;

	if (n <= buffer->capacity - buffer->length)
		return;
	if (n > SIZE_MAX / 4 - buffer->length)
		GatewayFatal(EXIT_FAILED, "out of memory: %zu bytes", n);
	while (capacity < buffer->length + n)
		capacity *= 2;
	buffer->data = GatewayRealloc(buffer->data, capacity);
	buffer->capacity = capacity;
}

void
BufferAppend(Buffer *buffer, const void *data, size_t n)
{
	if (n == 0)
		return;
	BufferReserve(buffer, n);
	memcpy(buffer->data + buffer->length, data, n);
	buffer->length += n;
}

void
BufferAppendString(Buffer *buffer, const char *string)
{
	BufferAppend(buffer, string, strlen(string));
}

/*
 * Appends a JSON string literal.  Only used for what a client may have sent in
 * a header, so everything that is not plain ASCII is escaped byte by byte.
 */
void
BufferAppendJson(Buffer *buffer, const char *string)
{
	BufferAppend(buffer, "\"", 1);
	for (; *string != '\0'; string++)
	{
		unsigned char c = (unsigned char) *string;

		if (c == '"' || c == '\\')
		{
			BufferAppend(buffer, "\\", 1);
			BufferAppend(buffer, string, 1);
		}
		else if (c < 0x20 || c > 0x7e)
		{
			char escape[8];

			snprintf(escape, sizeof(escape), "\\u%04x", c);
			BufferAppendString(buffer, escape);
		}
		else
			BufferAppend(buffer, string, 1);
	}
	BufferAppend(buffer, "\"", 1);
}

/*
 * The header of an unfragmented WebSocket text message; `header` has room for
 * FRAME_HEADER_MAX bytes.  Servers do not mask, so it depends on the length alone.
 */
size_t
BuildFrameHeader(unsigned char *header, size_t length, bool compressed)
{
	int i;

	/* Final fragment, text; RSV1 means permessage-deflate. */
	header[0] = compressed ? 0xc1 : 0x81;
	if (length < 126)
	{
		header[1] = (unsigned char) length;
		return 2;
	}
	if (length < 65536)
	{
		header[1] = 126;
		header[2] = (unsigned char) (length >> 8);
		header[3] = (unsigned char) length;
		return 4;
	}
	header[1] = 127;
	for (i = 0; i < 8; i++)
		header[2 + i] = (unsigned char) ((uint64_t) length >> (56 - 8 * i));
	return 10;
}

void
BufferAppendFrameHeader(Buffer *buffer, size_t length, bool compressed)
{
	unsigned char header[FRAME_HEADER_MAX];

	BufferAppend(buffer, header, BuildFrameHeader(header, length, compressed));
}

/* A close frame; `frame` has room for CLOSE_FRAME_MAX bytes. */
size_t
BuildCloseFrame(unsigned char *frame, uint16_t code, const char *reason, size_t length)
{
	if (length > CLOSE_REASON_MAX)
		length = CLOSE_REASON_MAX;
	frame[0] = 0x88; /* final fragment, close */
	frame[1] = (unsigned char) (2 + length);
	frame[2] = (unsigned char) (code >> 8);
	frame[3] = (unsigned char) code;
	if (length > 0)
		memcpy(frame + 4, reason, length);
	return 4 + length;
}

/* Empties the buffer, and gives back what it has above `keep` bytes. */
void
BufferReset(Buffer *buffer, size_t keep)
{
	buffer->length = 0;
	if (buffer->capacity > keep)
	{
		free(buffer->data);
		buffer->data = NULL;
		buffer->capacity = 0;
	}
}

/*
 * Is it well-formed UTF-8 (no overlong forms, surrogates, or values above
 * U+10FFFF)?  We check whole messages ourselves because lws' own check misses
 * a sequence that is cut by an empty last fragment.
 */
bool
Utf8IsValid(const char *data, size_t length)
{
	const unsigned char *p = (const unsigned char *) data;
	const unsigned char *end;

	/* An empty message may have no buffer. */
	if (length == 0)
		return true;
	end = p + length;

	while (p < end)
	{
		unsigned char c = *p;
		uint64_t eight;

		if (c < 0x80)
		{
			/* Mostly ASCII: take eight at a time. */
			while (end - p >= 8)
			{
				memcpy(&eight, p, 8);
				if (eight & UINT64_C(0x8080808080808080))
					break;
				p += 8;
			}
			while (p < end && *p < 0x80)
				p++;
			continue;
		}
		if (c < 0xc2)
			return false;
		if (c < 0xe0)
		{
			if (end - p < 2 || (p[1] & 0xc0) != 0x80)
				return false;
			p += 2;
		}
		else if (c < 0xf0)
		{
			if (end - p < 3 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 ||
				(c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f))
				return false;
			p += 3;
		}
		else
		{
			if (c > 0xf4 || end - p < 4 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 ||
				(p[3] & 0xc0) != 0x80 || (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f))
				return false;
			p += 4;
		}
	}
	return true;
}
