using System.Diagnostics;
using System.Security.Cryptography;
using System.Text.Json;

namespace BlockServer.Pfcli;

/// <summary>
/// The file that an import reads, wherever it comes from: fetched from an HTTP server, with what an interrupted run has fetched
/// already; checked against its SHA-256; a qcow2 image turned into a raw one by qemu-img. Disposing takes away what was made
/// for it.
/// </summary>
internal sealed class ImageFile : IDisposable
{
    private readonly List<string> _made = [];

    private ImageFile(string path) => Path = path;

    /// <summary>Where it lies; - is standard input.</summary>
    public string Path { get; private set; }

    /// <summary>It was a qcow2 image, and is a raw one now.</summary>
    public bool IsConverted { get; private set; }

    /// <summary>Brings it here. Throws <see cref="CliException"/>; nothing has been imported then.</summary>
    public static async Task<ImageFile> PrepareAsync(
        CommandContext context, string input, string? sha256, string scratch, string format, CancellationToken cancel)
    {
        bool isUrl = Uri.TryCreate(input, UriKind.Absolute, out Uri? url) && url.Scheme is "http" or "https";
        var image = new ImageFile(input);
        try
        {
            if (isUrl) await image.FetchAsync(context, url!, sha256, scratch, cancel);
            if (sha256 is not null) await image.CheckAsync(sha256, isUrl, cancel);
            if (input != "-" && (format == "qcow2" || (format == "auto" && IsQcow2(image.Path)))) await image.ConvertAsync(scratch, cancel);
            return image;
        }
        catch
        {
            image.Dispose();
            throw;
        }
    }

    /// <summary>What was fetched is not needed any more.</summary>
    public void Dispose()
    {
        foreach (string file in _made) File.Delete(file);
    }

    private async Task FetchAsync(CommandContext context, Uri url, string? sha256, string scratch, CancellationToken cancel)
    {
        var fetch = new ImageFetch(context, url, sha256, scratch);
        await fetch.RunAsync(cancel);
        Path = fetch.Part;
        _made.AddRange([fetch.Part, fetch.Note]);
    }

    private async Task CheckAsync(string sha256, bool isFetched, CancellationToken cancel)
    {
        if (Path == "-") throw new CliException("--sha256 needs a file or a URL", ExitCode.Usage);
        string found;
        try
        {
            await using FileStream file = File.OpenRead(Path);
            found = Convert.ToHexStringLower(await SHA256.HashDataAsync(file, cancel));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"{Path}: {e.Message}", inner: e);
        }

        if (!found.Equals(sha256, StringComparison.OrdinalIgnoreCase))
            throw new CliException($"its SHA-256 is {found}, not what was asked for; nothing was imported{(isFetched ? ", and what was fetched is gone" : "")}");
    }

    private static bool IsQcow2(string path)
    {
        try
        {
            using FileStream file = File.OpenRead(path);
            Span<byte> magic = stackalloc byte[4];
            return file.ReadAtLeast(magic, 4, throwOnEndOfStream: false) == 4 && System.Buffers.Binary.BinaryPrimitives.ReadUInt32BigEndian(magic) == 0x514649FB;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"{path}: {e.Message}", inner: e);
        }
    }

    /// <summary>Others' images may name files of this machine as their base: those are refused.</summary>
    private async Task ConvertAsync(string scratch, CancellationToken cancel)
    {
        using (JsonDocument about = JsonDocument.Parse(await RunAsync(["info", "--output=json", "-f", "qcow2", Path], cancel)))
        {
            bool hasOther = about.RootElement.TryGetProperty("backing-filename", out _)
                || (about.RootElement.TryGetProperty("format-specific", out JsonElement special) && special.TryGetProperty("data", out JsonElement data)
                    && data.TryGetProperty("data-file", out _));
            if (hasOther) throw new CliException("the image refers to another file; flatten it where it comes from (qemu-img convert)");
        }

        // What lies behind the end of a file that was cut off would be read as zeros, without a word.
        await RunAsync(["check", "-q", "-f", "qcow2", Path], cancel);

        string raw = System.IO.Path.Combine(scratch, $"pfcli-{Environment.ProcessId}.raw");
        _made.Add(raw);
        await RunAsync(["convert", "-f", "qcow2", "-O", "raw", Path, raw], cancel);
        Path = raw;
        IsConverted = true;
    }

    private static async Task<string> RunAsync(string[] arguments, CancellationToken cancel)
    {
        try
        {
            using Process process = Process.Start(new ProcessStartInfo("qemu-img", arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
            Task<string> errors = process.StandardError.ReadToEndAsync(cancel);
            string text = await process.StandardOutput.ReadToEndAsync(cancel);
            await process.WaitForExitAsync(cancel);
            const int OnlyLeaks = 3; // clusters that are nobody's: nothing is missing
            if (process.ExitCode == 0 || (process.ExitCode == OnlyLeaks && arguments[0] == "check")) return text;
            throw new CliException($"qemu-img {arguments[0]}: {(await errors).Trim().Split('\n')[0]}");
        }
        catch (System.ComponentModel.Win32Exception e)
        {
            throw new CliException("a qcow2 image needs qemu-img (package qemu-utils)", inner: e);
        }
    }
}
