// Keeps a random word in this browser, by which the lab knows whose runs are whose.

export default function ({ data }) {
  if (!data) return;
  const year = 60 * 60 * 24 * 365;
  document.cookie = `${data.name}=${data.value}; max-age=${year}; path=/; SameSite=Lax`;
}
