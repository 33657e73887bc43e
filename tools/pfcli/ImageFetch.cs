using System.Net;
using System.Net.Http.Headers;
using System.Security.Cryptography;
using System.Text;

namespace BlockServer.Pfcli;

/// <summary>
/// Fetches an image from an HTTP server into a part file, and goes on with the part that an interrupted run has left. Beside the part
/// lies what the server said of the image when the part was begun: by now another one may be there, and half of each is no image.
/// </summary>
internal sealed class ImageFetch
{
    private readonly CommandContext _context;
    private readonly Uri _url;
    private readonly bool _isChecked;

    /// <param name="context">The command.</param>
    /// <param name="url">Where the image is.</param>
    /// <param name="sha256">What it must be in the end, which shows whatever went wrong on the way; or null.</param>
    /// <param name="scratch">Folder of the part.</param>
    public ImageFetch(CommandContext context, Uri url, string? sha256, string scratch)
    {
        (_context, _url, _isChecked) = (context, url, sha256 is not null);
        string key = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(url + " " + sha256)))[..16];
        Part = Path.Combine(scratch, $"pfcli-{key}.part");
    }

    /// <summary>Where the image lies when it is whole.</summary>
    public string Part { get; }

    /// <summary>What is said of the part: how long the whole is, and which one it is.</summary>
    public string Note => Part + ".of";

    /// <summary>Fetches what is not there yet. Throws <see cref="CliException"/>; then the part stays for the next run, unless it is of no
    /// use.</summary>
    public async Task RunAsync(CancellationToken cancel)
    {
        using var client = new HttpClient(_context.Host.FetchTransport()) { Timeout = Timeout.InfiniteTimeSpan };
        try
        {
            await using var file = new FileStream(Part, FileMode.OpenOrCreate, FileAccess.Write, FileShare.None);
            (long Bytes, string Which)? known = ReadNote();
            // Which image it is shows by its validator, or by the checksum in the end.
            if (known is null || (known.Value.Which.Length == 0 && !_isChecked)) file.SetLength(0);
            file.Seek(0, SeekOrigin.End);
            using var request = new HttpRequestMessage(HttpMethod.Get, _url);
            if (file.Length > 0)
            {
                request.Headers.Range = new RangeHeaderValue(file.Length, null);
                if (known!.Value.Which.Length > 0) request.Headers.TryAddWithoutValidation("If-Range", known.Value.Which);
            }

            using HttpResponseMessage response = await client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, cancel);
            ContentRangeHeaderValue? range = response.Content.Headers.ContentRange;
            // There is nothing behind the end: the part is the whole.
            if (response.StatusCode == HttpStatusCode.RequestedRangeNotSatisfiable && file.Length > 0 && range?.Length == file.Length) return;
            if (!response.IsSuccessStatusCode) throw new CliException($"{_url.Host} answers {(int)response.StatusCode} {response.ReasonPhrase}");
            long? whole;
            if (response.StatusCode == HttpStatusCode.PartialContent)
            {
                whole = WholeOf(response, range, file.Length, known);
            }
            else
            {
                whole = response.Content.Headers.ContentLength;
                bool endIsSaid = whole is not null || response.Headers.TransferEncodingChunked == true || response.Version.Major > 1;
                if (!endIsSaid && !_isChecked)
                    throw new CliException($"{_url.Host} does not say how long the image is, so that a part of it would pass for all: give its checksum (--sha256)");
                file.SetLength(0); // a server that cannot go on, or has another one now, begins anew
                await File.WriteAllTextAsync(Note, $"{whole ?? -1}\n{WhichOf(response)}\n", cancel);
            }

            await CopyAsync(response, file, whole, cancel);
            if (whole is not null && file.Length != whole) throw new IOException($"{file.Length} bytes have come of {whole}");
        }
        catch (Exception e) when (e is IOException or HttpRequestException or UnauthorizedAccessException)
        {
            throw new CliException($"fetching {_url} broke off ({(e.InnerException ?? e).Message}); the same command goes on with what has come to {Part}", inner: e);
        }
        finally
        {
            if (File.Exists(Part) && new FileInfo(Part).Length == 0) Forget();
        }
    }

    /// <summary>How long the image is of which the rest comes. Throws <see cref="CliException"/> when that is no rest of the part.</summary>
    private long? WholeOf(HttpResponseMessage response, ContentRangeHeaderValue? range, long begun, (long Bytes, string Which)? known)
    {
        string which = WhichOf(response);
        bool isRest = begun > 0 && range?.From == begun && known is not null
            && (range.Length is null || known.Value.Bytes < 0 || range.Length == known.Value.Bytes)
            && (which.Length == 0 || known.Value.Which.Length == 0 || which == known.Value.Which);
        if (isRest)
        {
            if (range!.Length is { } said) return said;
            return known!.Value.Bytes >= 0 ? known.Value.Bytes : begun + response.Content.Headers.ContentLength;
        }

        Forget();
        throw new CliException($"{_url.Host} does not answer with the rest of what has come: the image was changed there, or the server is wrong; what was fetched is gone, the same command begins anew");
    }

    private async Task CopyAsync(HttpResponseMessage response, FileStream file, long? whole, CancellationToken cancel)
    {
        var progress = new TransferProgress(_context.Host, $"fetch {_url.Host}", (ulong)(whole ?? 0), (ulong)file.Length, _context.Printer.Json || whole is null);
        await using Stream body = await response.Content.ReadAsStreamAsync(cancel);
        var buffer = new byte[1 << 20];
        for (int count; (count = await body.ReadAsync(buffer, cancel)) > 0;)
        {
            await file.WriteAsync(buffer.AsMemory(0, count), cancel);
            progress.Show((ulong)file.Length);
        }

        progress.End();
    }

    /// <summary>What a server calls the image as it is now: its strong entity tag, else when it was changed last, else nothing.</summary>
    private static string WhichOf(HttpResponseMessage response) =>
        response.Headers.ETag is { IsWeak: false } tag ? tag.Tag : response.Content.Headers.LastModified?.ToString("R") ?? "";

    private (long Bytes, string Which)? ReadNote()
    {
        if (!File.Exists(Note)) return null;
        string[] lines = File.ReadAllLines(Note);
        return lines.Length == 2 && long.TryParse(lines[0], out long bytes) ? (bytes, lines[1]) : null;
    }

    private void Forget()
    {
        File.Delete(Part);
        File.Delete(Note);
    }
}
