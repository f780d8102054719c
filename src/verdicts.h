/*-------------------------------------------------------------------------
 *
 * verdicts.h
 *		What identities may see of judged rows.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_VERDICTS_H
#define CHANGEFEED_VERDICTS_H

#include "feed.h"

typedef enum Verdict
{
	VERDICT_UNKNOWN = 0, /* not asked for */
	VERDICT_ASKED,
	VERDICT_HIDDEN,
	VERDICT_VISIBLE
} Verdict;

/* The verdict of the view's rule on an image; VERDICT_UNKNOWN: it has none. */
extern Verdict VerdictInline(TransactionMap *map, const View *view, int image);

/* The JSON of a visible image's columns in view->casts, for this identity. */
extern const char *const *
VerdictTexts(TransactionMap *map, Identity *identity, const View *view, int image);

extern const CastList *CastListIntern(const int16 *attnos, int n);

/*
 * The query workers' for the identity.  With `ask` they are asked if it is not known
 * (VerdictsAdvance); VERDICT_UNKNOWN then means that too many questions wait.  Who
 * waits for a verdict is woken when there is room again.
 */
extern Verdict
VerdictGet(TransactionMap *map, Identity *identity, const View *view, int image, bool ask);

/* So many that one delivery has asked for: rather give those who want more a snapshot. */
extern bool VerdictsTooMany(uint64 asked);

/* What was asked about the map's images and has not been submitted; all who wait ask again. */
extern void VerdictsWithdraw(TransactionMap *map);

/* Submits what was asked, takes results over. */
extern void VerdictsAdvance(void);

#endif /* CHANGEFEED_VERDICTS_H */
