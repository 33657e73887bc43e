using System.Formats.Tar;
using System.Globalization;
using System.IO.Compression;
using System.Runtime.InteropServices;
using System.Text;
using BlockServer.Cluster;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>
/// What somebody who helps needs to know, in one file: everything that the API shows, the settings, the log's tail, the superblocks of
/// the disks, the kernel. No content of volumes, and no secret: all passes a <see cref="SupportRedactor"/> that knows every
/// secret of this daemon. Any thread.
/// </summary>
internal sealed class SupportBundle(Daemon daemon, IAdminRoutes routes)
{
    // Of one file in it; what is longer is cut and says so.
    private const int EntryCharactersMax = 8 << 20;
    private const int SecretFileBytesMax = 1 << 20;

    // What has no end, is known anyway, or is this.
    private static readonly string[] s_left = ["watch", "openapi.json", "support"];
    private static readonly string[] s_kernelFiles =
    [
        "/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/partitions", "/proc/diskstats", "/proc/self/limits", "/proc/self/status",
        "/proc/sys/kernel/io_uring_disabled", "/proc/sys/fs/aio-max-nr", "/proc/sys/fs/aio-nr", "/etc/os-release",
    ];

    /// <summary>Writes the bundle, a tar.gz. What cannot be read is told in it.</summary>
    public async Task WriteAsync(Stream target, CancellationToken cancel)
    {
        var redactor = new SupportRedactor(Secrets());
        await using var packed = new GZipStream(target, CompressionLevel.Fastest, leaveOpen: true);
        await using var tar = new TarWriter(packed, TarEntryFormat.Pax, leaveOpen: true);
        var contents = new StringBuilder();

        async Task AddAsync(string name, Func<Task<string>> read)
        {
            cancel.ThrowIfCancellationRequested();
            string text;
            try
            {
                text = await read();
                if (text.Length > EntryCharactersMax) text = $"(only the last {EntryCharactersMax} of {text.Length} characters)\n{text[^EntryCharactersMax..]}";
            }
#pragma warning disable CA1031 // A bundle is made because something is wrong: what cannot be read must not keep the rest back.
            catch (Exception e) when (e is not OperationCanceledException)
#pragma warning restore CA1031
            {
                text = $"could not be read: {e.Message}\n";
            }

            byte[] bytes = Encoding.UTF8.GetBytes(redactor.Clean(text));
            var entry = new PaxTarEntry(TarEntryType.RegularFile, "blockd-support/" + name)
            {
                DataStream = new MemoryStream(bytes), ModificationTime = SystemClock.Instance.UtcNow, Mode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
            };
            await tar.WriteEntryAsync(entry, cancel);
            contents.Append(CultureInfo.InvariantCulture, $"{name} {bytes.Length}\n");
        }

        foreach (ApiRoute route in ApiRouteTable.All.Where(r => r.Method == "GET" && !r.Template.Contains('{', StringComparison.Ordinal) && !s_left.Contains(r.Template)))
            await AddAsync($"api/{route.Template.Replace('/', '-')}.txt", () => AskAsync(route.Template, cancel));
        await AddAsync("settings.txt", () => Task.FromResult(Settings()));
        await AddAsync("log.txt", () => Task.FromResult(string.Join('\n', LogTail.Instance.Lines) + "\n"));
        await AddAsync("runtime.txt", () => Task.FromResult(Runtime()));
        foreach (StoreHost host in daemon.Stores.All) await AddAsync($"stores/{host.Name}.txt", () => SuperblocksAsync(host));
        foreach (string file in s_kernelFiles.Where(File.Exists)) await AddAsync("kernel" + file.Replace('/', '-') + ".txt", () => File.ReadAllTextAsync(file, cancel));
        await AddAsync("contents.txt", () => Task.FromResult(contents.ToString()));
    }

    private async Task<string> AskAsync(string template, CancellationToken cancel)
    {
        using var answer = new MemoryStream();
        var context = new DefaultHttpContext { RequestAborted = cancel };
        context.Request.Method = "GET";
        context.Request.Path = "/v1/" + template;
        context.Response.Body = answer;
        await routes.HandleAsync(new ApiCall(context, template.Split('/'), ApiCaller.Administrator));
        await context.Response.BodyWriter.FlushAsync(cancel);
        return Encoding.UTF8.GetString(answer.ToArray());
    }

    /// <summary>Every secret that this daemon knows or could know.</summary>
    private IEnumerable<string> Secrets()
    {
        foreach (string file in new[] { daemon.TokenPath, daemon.Settings.IscsiChap, daemon.Settings.TlsKey }.OfType<string>())
        {
            string text = "";
            try
            {
                var info = new FileInfo(file);
                if (info.Exists && info.Length <= SecretFileBytesMax) text = File.ReadAllText(file);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // What cannot be read here is in no answer either.
            }

            foreach (string line in text.Split('\n'))
            {
                yield return line;
                if (file == daemon.Settings.IscsiChap) yield return line.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries).LastOrDefault() ?? "";
            }
        }

        foreach (string target in daemon.Targets.List().Select(t => t.Name).Append(TargetDirectory.Discovery))
        {
            foreach (ChapUserSecret user in daemon.Targets.SecretsOf(target)) yield return user.Secret;
        }

        yield return daemon.TokenHash;
    }

    private string Settings()
    {
        Settings s = daemon.Settings;
        var text = new StringBuilder();
        void Add(string name, object? value) => text.Append(CultureInfo.InvariantCulture, $"{name}: {value}\n");
        Add("data-dir", s.DataDir);
        Add("nbd", string.Join(' ', s.Nbd));
        Add("iscsi", string.Join(' ', s.Iscsi));
        Add("iscsi-prefix", s.IscsiPrefix);
        Add("iscsi-chap", s.IscsiChap is null ? "" : "a file is set");
        Add("api", string.Join(' ', s.Api));
        Add("store-size", s.StoreSizeBytes);
        Add("durability", s.Durability);
        Add("engine", $"{s.Engine}, in use: {daemon.EngineName}");
        Add("metadata-ram", s.MetadataRamBytes);
        Add("relayout-rate", s.RelayoutBytesPerSecond);
        Add("loops", s.Loops);
        Add("busy-poll-micros", s.BusyPollMicros);
        Add("background-nice", s.BackgroundNice);
        Add("tls", $"{s.Tls}, clients {s.TlsClients}, certificate {s.TlsCert}, authority {s.TlsCa}, key {(s.TlsKey is null ? "none" : "a file is set")}");
        Add("connections", $"{s.Connections}, of one address {s.ConnectionsPerAddress}");
        Add("limits", s.Limits);
        Add("stop-wait", s.StopWaitSeconds);
        Add("low-space", s.LowSpacePercent);
        Add("space", $"metadata-warn {s.MetadataWarnPercent}, write-protect {s.WriteProtectPercent}, {(s.IsThinByDefault ? "thin" : "reserved")}");
        Add("insecure", s.Insecure);
        return text.ToString();
    }

    private string Runtime()
    {
        GCMemoryInfo memory = GC.GetGCMemoryInfo();
        var drive = new DriveInfo(daemon.Settings.DataDir);
        return string.Create(CultureInfo.InvariantCulture, $"""
            blockd {Program.Version}
            started {daemon.StartedAt:O}, bundle made {SystemClock.Instance.UtcNow:O}
            {RuntimeInformation.FrameworkDescription} on {RuntimeInformation.OSDescription}, {RuntimeInformation.ProcessArchitecture}, {Environment.ProcessorCount} processors
            memory: working set {Environment.WorkingSet}, heap {memory.HeapSizeBytes}, available {memory.TotalAvailableMemoryBytes}, collections {GC.CollectionCount(0)} {GC.CollectionCount(1)} {GC.CollectionCount(2)}
            threads: {ThreadPool.ThreadCount} in the pool, {ThreadPool.PendingWorkItemCount} waiting
            data directory: {drive.DriveFormat}, {drive.AvailableFreeSpace} of {drive.TotalSize} bytes free
            """) + "\n";
    }

    private static async Task<string> SuperblocksAsync(StoreHost host)
    {
        IReadOnlyList<string> copies = await host.SuperblocksAsync();
        return $"disk {host.Name}, store {host.StoreId}, at {host.DiskPath}\n" + string.Concat(copies.Select((c, i) => $"copy {i}: {c}\n"));
    }
}
