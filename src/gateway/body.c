/*-------------------------------------------------------------------------
 *
 * body.c
 *		Transactions, their fragments, and who gets which of them.
 *
 * Most connections that get something of a transaction get the same as many
 * others.  What a group gets is a Body, which all of its frames refer to: one
 * more fragment makes another body of it, for those who get that too.  So a
 * frame in a queue is small, whatever its transaction is, and what is sent can
 * be put together once for all (join.c).
 *
 * A body that has only one frame is that frame's own: it just grows.  That
 * keeps the memory of a transaction of which everybody gets something else at a
 * pointer for each fragment and receiver.
 *
 * Process: gateway.  Memory: all of this is reference-counted.  A body refers to
 * its base, its fragments and its transaction; frames refer to bodies, and
 * fanout.c to what is being built.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "gateway.h"

void
FragmentRelease(Fragment *fragment)
{
	if (--fragment->references > 0)
		return;
	free(fragment->packed);
	free(fragment);
}

void
TransactionRelease(Transaction *transaction)
{
	if (--transaction->references == 0)
		free(transaction);
}

/* What it is accounted as: a message with its position. */
size_t
FragmentSize(const Fragment *fragment)
{
	if (!fragment->message)
		return (size_t) fragment->length + 1;
	return (size_t) fragment->length + fragment->suffix_length + ENVELOPE_BYTES;
}

/* Of nothing yet. */
Body *
BodyNew(Transaction *transaction)
{
	Body *body = GatewayAllocZero(sizeof(Body));

	body->references = 1;
	body->pieces = &body->one;
	body->capacity = 1;
	body->transaction = transaction;
	transaction->references++;
	return body;
}

static void
Append(Body *body, Fragment *piece)
{
	if (body->n == body->capacity)
	{
		Fragment **old = body->pieces == &body->one ? NULL : body->pieces;

		body->capacity *= 4;
		body->pieces = GatewayRealloc(old, body->capacity * sizeof(Fragment *));
		if (old == NULL)
			body->pieces[0] = body->one;
	}
	body->pieces[body->n++] = piece;
	piece->references++;
	if (!piece->message)
		body->n_fragments++;
	else
	{
		body->n_messages++;
		if (!piece->no_position)
			body->has_positions = true;
	}
}

/* What `base` has, whose reference it takes, and the piece. */
Body *
BodyWith(Body *base, Fragment *piece)
{
	Body *body = base->next;

	/* Others of its group got it just before. */
	if (body != NULL && body->n == 1 && body->one == piece)
	{
		body->references++;
		base->references--;
		return body;
	}
	if (base->references == 1 && base->base != NULL)
	{
		Append(base, piece);
		return base;
	}
	body = BodyNew(base->transaction);
	body->base = base;
	body->n_fragments = base->n_fragments;
	body->n_messages = base->n_messages;
	body->has_positions = base->has_positions;
	base->next = body;
	Append(body, piece);
	return body;
}

void
BodyRelease(Body *body)
{
	uint32_t i;

	while (body != NULL && --body->references == 0)
	{
		Body *base = body->base;

		for (i = 0; i < body->n; i++)
			FragmentRelease(body->pieces[i]);
		if (body->pieces != &body->one)
			free(body->pieces);
		free(body->all);
		for (i = 0; i < body->n_images; i++)
			ImageFree(body->images[i]);
		free(body->images);
		if (base != NULL && base->next == body)
			base->next = NULL;
		TransactionRelease(body->transaction);
		free(body);
		body = base;
	}
}

/* All of its fragments, then its messages; it does not grow any more. */
Fragment **
BodyPieces(Body *body)
{
	uint32_t fragments = body->n_fragments;
	uint32_t all = fragments + body->n_messages;
	const Body *part;

	if (all == body->n && (fragments == 0 || body->n_messages == 0))
		return body->pieces;
	if (body->all != NULL)
		return body->all;
	body->all = GatewayAlloc(all * sizeof(Fragment *));
	for (part = body; part != NULL; part = part->base)
	{
		uint32_t i;

		for (i = part->n; i-- > 0;)
			body->all[part->pieces[i]->message ? --all : --fragments] = part->pieces[i];
	}
	return body->all;
}
