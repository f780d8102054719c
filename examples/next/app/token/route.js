import { token } from '../session.js';

// With POST, so that no other site can read it, and nothing on the way keeps it.
export async function POST() {
  return new Response(await token(), { headers: { 'Cache-Control': 'no-store' } });
}
