using BlockServer.Core;
using BlockServer.Pfcli;
using BlockServer.Streams;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>export_image and import_image against a daemon in this process, with files and pipes.</summary>
public sealed class ImageCommandTests
{
    private const ulong Size = 6 * Units.MiB;

    private static Task<(int Code, string Out, string Error)> RunAsync(StreamWorld world, Stream? input, Stream? output, params string[] args) =>
        RunAsync(world, input, output, long.MaxValue, args);

    /// <summary>Connections end when so many bytes of one request's body were sent.</summary>
    private static async Task<(int Code, string Out, string Error)> RunAsync(StreamWorld world, Stream? input, Stream? output, long cutAt, string[] args)
    {
        using StringWriter text = new(), error = new();
        int code = await CommandLine.RunAsync(["--server", world.Url, "--token-file", world.Daemon.TokenPath, "--yes", .. args], new CliHost
        {
            Out = text,
            Error = error,
            In = TextReader.Null,
            Environment = _ => null,
            Transport = () => cutAt == long.MaxValue ? CliHost.OfProcess().Transport() : new SocketsHttpHandler { ConnectCallback = (context, cancel) => CutStream.ConnectAsync(context, cutAt, cancel) },
            HandsFiles = cutAt == long.MaxValue,
            Delay = Task.Delay,
            OpenIn = () => input!,
            OpenOut = () => output!,
            FetchTransport = () => world.Elsewhere!,
        }, TestContext.Current.CancellationToken);
        return (code, text.ToString(), error.ToString());
    }

    private static async Task<string> DoneAsync(StreamWorld world, params string[] args)
    {
        (int code, string text, string error) = await RunAsync(world, null, null, args);
        Assert.True(code == 0, error);
        return text;
    }

    private static async Task RefusedAsync(StreamWorld world, string words, params string[] args)
    {
        (int code, _, string error) = await RunAsync(world, null, null, args);
        Assert.NotEqual(0, code);
        string line = Assert.Single(error.TrimEnd('\n').Split('\n'), l => l.StartsWith("pfcli: ", StringComparison.Ordinal));
        Assert.Contains(words, line, StringComparison.Ordinal);
    }

    private static async Task<StreamWorld> FilledAsync()
    {
        StreamWorld world = await StreamWorld.StartAsync();
        await world.CreateAsync("vm1", Size);
        await world.WriteAsync("vm1", 8192, StreamWorld.Pattern(1, 2 << 20));
        await world.WriteAsync("vm1", 5 << 20, new byte[1 << 19]);
        await world.CutAsync("vm1", 1);
        return world;
    }

    [Fact]
    public async Task A_daemon_is_reached_by_its_unix_socket()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.Test.CreateAsync("vm1", Size);
        (int code, string text, string error) = await ApiPfcli.RunAsync("unix:" + server.UnixPath, server.Test.Daemon.TokenPath, ["list_volume"], TestContext.Current.CancellationToken);
        Assert.True(code == 0, error);
        Assert.Contains("vm1", text, StringComparison.Ordinal);
        (code, _, error) = await ApiPfcli.RunAsync("unix:/nowhere", server.Test.Daemon.TokenPath, ["list_volume"], TestContext.Current.CancellationToken);
        Assert.Equal(1, code);
        Assert.Contains("no connection to blockd at unix:/nowhere", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_raw_image_leaves_and_comes_back_sparse()
    {
        await using StreamWorld world = await FilledAsync();
        string file = world.PathOf("vm1.img");
        await DoneAsync(world, "export_image", "-v", "vm1", "-n", "s1", "--format", "raw", "-o", file);
        Assert.Equal(await world.ReadAsync("vm1"), await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken));
        Assert.False(File.Exists(file + ".cursor"));
        await DoneAsync(world, "import_image", "-v", "vm2", "-i", file);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm2"));
        await RefusedAsync(world, "exists", "export_image", "-v", "vm1", "-n", "s1", "--format", "raw", "-o", file);
        await RefusedAsync(world, "name-taken", "import_image", "-v", "vm2", "-i", file);
        using var holder = new FileStream(file, FileMode.Open, FileAccess.ReadWrite);
        holder.SetLength((long)Size + 100); // an image of an odd length
        holder.Close();
        await DoneAsync(world, "import_image", "-v", "vm3", "-i", file);
        Assert.Equal(Size + 512, world.Volume("vm3").SizeBytes);
        Assert.Equal(await world.ReadAsync("vm1"), (await world.ReadAsync("vm3"))[..(int)Size]);
        StoreUse used = await UseAsync(world);
        Assert.InRange(used.Of("vm2"), 2UL << 20, (2UL << 20) + 16384);

        static async Task<StoreUse> UseAsync(StreamWorld world) =>
            new(await world.Host("vm2").UsedBytesAsync([world.Volume("vm2").Id]), world);
    }

    private sealed record StoreUse(Dictionary<uint, ulong> Bytes, StreamWorld World)
    {
        public ulong Of(string name) => Bytes[World.Volume(name).Id];
    }

    [Fact]
    public async Task Streams_go_through_pipes()
    {
        await using StreamWorld world = await FilledAsync();
        using var full = new MemoryStream();
        Assert.Equal(0, (await RunAsync(world, null, full, "export_image", "-v", "vm1", "-n", "s1", "-o", "-")).Code);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(2, 9000));
        await world.CutAsync("vm1", 2);
        using var increment = new MemoryStream();
        (int code, string said, _) = await RunAsync(world, null, increment, "export_image", "-v", "vm1", "-n", "s2", "--base", "s1", "-o", "-");
        Assert.Equal((0, ""), (code, said));
        using var image = new MemoryStream();
        Assert.Equal(0, (await RunAsync(world, null, image, "export_image", "-v", "vm1", "-n", "s2", "--format", "raw", "-o", "-")).Code);
        Assert.Equal(await world.ReadAsync("vm1"), image.ToArray());
        foreach (MemoryStream stream in new[] { full, increment })
        {
            using var input = new MemoryStream(stream.ToArray());
            (code, _, string error) = await RunAsync(world, input, null, "import_image", "-v", "vm2", "-i", "-");
            Assert.True(code == 0, error);
        }

        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm2"));
        using var raw = new MemoryStream(image.ToArray());
        Assert.Equal(0, (await RunAsync(world, raw, null, "import_image", "-v", "vm3", "-i", "-", "--format", "raw", "-s", "6m")).Code);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm3"));
        using var cut = new MemoryStream(full.ToArray()[..^100]);
        (code, _, string why) = await RunAsync(world, cut, null, "import_image", "-v", "vm4", "-i", "-");
        Assert.Equal(1, code);
        Assert.Contains("truncated-stream", why, StringComparison.Ordinal);
        Assert.Null(world.Daemon.Directory.Find("vm4"));
    }

    [Theory]
    [InlineData("stream")]
    [InlineData("raw")]
    public async Task An_export_that_broke_off_goes_on(string format)
    {
        await using StreamWorld world = await FilledAsync();
        string file = world.PathOf("vm1." + format), whole = world.PathOf("whole");
        await DoneAsync(world, "export_image", "-v", "vm1", "-n", "s1", "--format", format, "-o", whole);
        byte[] all = await File.ReadAllBytesAsync(whole, TestContext.Current.CancellationToken);
        if (format == "stream")
        {
            await File.WriteAllBytesAsync(file, all[..(all.Length / 2)], TestContext.Current.CancellationToken);
        }
        else
        {
            // As it is left behind by an interruption: a part of the image, and the place.
            byte[] stream = await world.ExportAsync("vm1", 1);
            StreamHeader.TryRead(stream, out StreamHeader? header);
            var decoder = new StreamDecoder(header!);
            for (int n = 0, at = StreamHeader.Size; n < 2; n++)
            {
                Assert.Null(decoder.ReadFrame(stream.AsSpan(at), out StreamFrame frame));
                Assert.Null(decoder.Pass(frame, stream.AsSpan(at + StreamFrame.Size, frame.PayloadBytes)));
                at += StreamFrame.Size + frame.PayloadBytes;
            }

            var image = new byte[Size];
            all.AsSpan(0, (int)decoder.Cursor.OffsetBytes).CopyTo(image);
            await File.WriteAllBytesAsync(file, image, TestContext.Current.CancellationToken);
            await RefusedAsync(world, "begin anew", "export_image", "-v", "vm1", "--format", "raw", "-o", file, "--resume");
            await File.WriteAllTextAsync(
                file + ".cursor", decoder.Cursor + "\n" + Convert.ToHexStringLower(stream.AsSpan(0, 512)) + "\n", TestContext.Current.CancellationToken);
        }

        await RefusedAsync(world, "was begun with", "export_image", "-v", "vm1", "-n", "s9", "--format", format, "-o", file, "--resume");
        await DoneAsync(world, "export_image", "-v", "vm1", "--format", format, "-o", file, "--resume");
        if (format == "raw")
        {
            Assert.Equal(all, await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken));
            return;
        }

        await DoneAsync(world, "export_image", "-v", "vm1", "-o", file, "--resume"); // it is whole already
        await DoneAsync(world, "import_image", "-v", "vm2", "-i", file);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm2"));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task An_import_that_broke_off_goes_on(bool isRaw)
    {
        await using StreamWorld world = await FilledAsync();
        string file = world.PathOf("vm1.file");
        if (isRaw) await File.WriteAllBytesAsync(file, await world.ReadAsync("vm1"), TestContext.Current.CancellationToken);
        else await DoneAsync(world, "export_image", "-v", "vm1", "-n", "s1", "--format", "stream", "-o", file);
        await RefusedAsync(world, "no-such-volume", "import_image", "-v", "vm2", "-i", file, "--resume");
        byte[] stream = isRaw ? Raw(await world.ReadAsync("vm1")) : await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken);
        Assert.Equal("truncated-stream", await world.ImportAsync("vm2", stream[..(stream.Length / 2)], "keep=true"));
        Assert.Contains("initializing", await DoneAsync(world, "list_volume"), StringComparison.Ordinal);
        await RefusedAsync(world, "import-unfinished", "import_image", "-v", "vm2", "-i", file);
        await DoneAsync(world, "import_image", "-v", "vm2", "-i", file, "--resume");
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm2"));
        await RefusedAsync(world, "no import", "import_image", "-v", "vm2", "-i", file, "--resume");

        static byte[] Raw(byte[] content)
        {
            var header = new StreamHeader { StreamId = StreamWorld.Id(3), SizeBytes = Size };
            var output = new System.Buffers.ArrayBufferWriter<byte>();
            header.WriteTo(output.GetSpan(512));
            output.Advance(512);
            var encoder = new StreamEncoder(header);
            for (int at = 0; at < content.Length; at += 1 << 20) BatchEncoder.Write(encoder, (ulong)at, content.AsSpan(at, 1 << 20), output);
            return output.WrittenSpan.ToArray();
        }
    }

    /// <summary>Broken off twice, by a connection that ends after so many bytes: a sparse image goes on where it stood, and one that
    /// was changed in between is refused although nothing of the change would have been sent again.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_raw_image_goes_on_only_unchanged(bool isPipe)
    {
        await using StreamWorld world = await StreamWorld.StartAsync();
        string file = world.PathOf("vm.img");
        using (var image = new FileStream(file, FileMode.CreateNew))
        {
            // Holes that begin and end within a frame and along one, and zeros that were written.
            image.SetLength((long)Size);
            foreach ((int at, int length) in new[] { (0, 1_300_000), (1_700_000, 500_000), (4 << 20, 100_000), ((4 << 20) + 300_000, 900_000) })
            {
                image.Position = at;
                image.Write(StreamWorld.Pattern((ulong)at, length));
            }

            image.Position = 600_000;
            image.Write(new byte[200_000]);
        }

        byte[] content = await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken);
        string[] import = ["import_image", "-v", "vm", "-i", isPipe ? "-" : file, "--format", "raw", "--keep", .. isPipe ? ["--size", $"{Size}"] : Array.Empty<string>()];
        async Task<(int Code, string Error)> ImportAsync(byte[] from, long cutAt, params string[] more)
        {
            using var pipe = new MemoryStream(from);
            (int code, _, string error) = await RunAsync(world, pipe, null, cutAt, [.. import, .. more]);
            return (code, error);
        }

        ulong stood = 0;
        foreach (string[] more in new string[][] { [], ["--resume"] })
        {
            (int code, string error) = await ImportAsync(content, 1_500_000, more);
            Assert.NotEqual(0, code);
            // The daemon may not even have begun.
            ulong before = stood;
            for (int i = 0; i < 1000 && (stood == before || world.Daemon.Imports.IsRunning("vm")); i++)
            {
                await Task.Delay(10, TestContext.Current.CancellationToken);
                stood = StreamCursor.TryParse(world.Daemon.Directory.Find("vm")?.Import?.Cursor)?.OffsetBytes ?? 0;
            }

            Assert.True(stood > before, error);
        }

        Assert.InRange(stood, 2UL << 20, 5UL << 20);
        byte[] changed = [.. content];
        changed[5000] ^= 1;
        void Put(byte[] from)
        {
            using var image = new FileStream(file, FileMode.Open, FileAccess.Write);
            image.Position = 5000;
            image.WriteByte(from[5000]);
        }

        Put(changed);
        Assert.Contains("changed since", (await ImportAsync(changed, long.MaxValue, "--resume")).Error, StringComparison.Ordinal);
        Put(content);
        (int last, string said) = await ImportAsync(content, long.MaxValue, "--resume");
        Assert.True(last == 0, said);
        Assert.Equal(content, await world.ReadAsync("vm"));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task An_image_is_fetched_goes_on_and_is_checked(bool hasRanges)
    {
        await using StreamWorld world = await StreamWorld.StartAsync();
        byte[] image = StreamWorld.Pattern(5, 3 << 20);
        string sha = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(image)), scratch = world.PathOf("");
        var server = new ImageServer(image, hasRanges);
        world.Elsewhere = server;
        string[] fetch = ["import_image", "-v", "vm1", "-i", "http://images.example/a.raw", "--scratch", scratch];
        await RefusedAsync(world, "broke off", [.. fetch, "--sha256", sha]);
        Assert.Null(world.Daemon.Directory.Find("vm1"));
        server.BreaksAt = int.MaxValue;
        await DoneAsync(world, [.. fetch, "--sha256", sha]);
        Assert.Equal(image, await world.ReadAsync("vm1"));
        Assert.Equal(hasRanges ? [0, 1 << 20] : [0L, 0], server.Begun);
        await RefusedAsync(world, "SHA-256", ["import_image", "-v", "vm2", .. fetch[3..], "--sha256", new string('0', 64)]);
        Assert.Null(world.Daemon.Directory.Find("vm2"));
        Assert.Empty(Directory.EnumerateFiles(scratch, "pfcli-*"));
        server.Status = System.Net.HttpStatusCode.NotFound;
        await RefusedAsync(world, "404", ["import_image", "-v", "vm2", .. fetch[3..]]);
    }

    /// <summary>Half of one image and half of another one, or less than all, is never imported.</summary>
    [Fact]
    public async Task A_server_that_changes_the_image_or_lies_about_its_length_is_found_out()
    {
        await using StreamWorld world = await StreamWorld.StartAsync();
        byte[] image = StreamWorld.Pattern(5, 5 << 18), other = StreamWorld.Pattern(6, 6 << 18);
        string scratch = world.PathOf("");
        string[] FetchOf(string name) => ["import_image", "-v", name, "-i", $"http://images.example/{name}.raw", "--scratch", scratch];
        async Task<ImageServer> BrokenOffAsync(string name, string? tag)
        {
            var server = new ImageServer(image, hasRanges: true) { Tag = tag };
            world.Elsewhere = server;
            await RefusedAsync(world, "broke off", FetchOf(name));
            server.BreaksAt = int.MaxValue;
            return server;
        }

        ImageServer same = await BrokenOffAsync("same", "\"1\"");
        await DoneAsync(world, FetchOf("same"));
        Assert.Equal([0, 1 << 20], same.Begun);
        Assert.Equal(image, await world.ReadAsync("same"));

        // Nothing says that it is the same image still: it is fetched anew.
        ImageServer unnamed = await BrokenOffAsync("unnamed", null);
        await DoneAsync(world, FetchOf("unnamed"));
        Assert.Equal([0L, 0], unnamed.Begun);

        // A server that heeds If-Range gives the other image from its beginning.
        ImageServer changed = await BrokenOffAsync("changed", "\"1\"");
        (changed.Image, changed.Tag) = (other, "\"2\"");
        await DoneAsync(world, FetchOf("changed"));
        Assert.Equal(other, await world.ReadAsync("changed"));

        // One that does not is found out by its tag, by the length, or by the place.
        foreach (Action<ImageServer> lie in (Action<ImageServer>[])[s => s.Tag = "\"2\"", s => s.Image = other, s => s.Shift = -4096])
        {
            ImageServer liar = await BrokenOffAsync("liar", "\"1\"");
            liar.HeedsIfRange = false;
            lie(liar);
            await RefusedAsync(world, "does not answer with the rest", FetchOf("liar"));
        }

        // The rest ends in front of the end; an answer that ends where the connection does.
        ImageServer ends = await BrokenOffAsync("liar", "\"1\"");
        ends.Missing = 5000;
        await RefusedAsync(world, "have come of 1310720", FetchOf("liar"));
        ends.Missing = 0;
        await DoneAsync(world, FetchOf("liar"));
        Assert.Equal(image, await world.ReadAsync("liar"));
        world.Elsewhere = new ImageServer(image, hasRanges: true) { BreaksAt = int.MaxValue, SaysLength = false };
        await RefusedAsync(world, "--sha256", FetchOf("endless"));
        await DoneAsync(world, [.. FetchOf("endless"), "--sha256", Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(image))]);
        Assert.Empty(Directory.EnumerateFiles(scratch, "pfcli-*"));
    }

    /// <summary>A stream whose first bytes are damaged would be a fine raw image, and so would every other container.</summary>
    [Fact]
    public async Task What_is_of_another_format_is_not_taken_for_a_raw_image()
    {
        await using StreamWorld world = await FilledAsync();
        string full = world.PathOf("full"), bad = world.PathOf("bad");
        await DoneAsync(world, "export_image", "-v", "vm1", "-n", "s1", "-o", full);
        byte[] stream = await File.ReadAllBytesAsync(full, TestContext.Current.CancellationToken);
        for (int at = 0; at < 8; at++)
        {
            stream[at] ^= 0x10;
            await File.WriteAllBytesAsync(bad, stream, TestContext.Current.CancellationToken);
            await RefusedAsync(world, "header of the stream is damaged", "import_image", "-v", "vm2", "-i", bad);
            (int code, _, string error) = await RunAsync(world, new MemoryStream(stream), null, "import_image", "-v", "vm2", "-i", "-", "--size", "16m");
            Assert.True(code == 1 && error.Contains("header of the stream is damaged", StringComparison.Ordinal), error);
            stream[at] ^= 0x10;
        }

        var foreign = new byte[8192];
        foreach ((byte[] begin, int at, string words) in (ValueTuple<byte[], int, string>[])
            [([0x51, 0x46, 0x49, 0xFB], 0, "qcow2"), ("KDMV"u8.ToArray(), 0, "VMDK"), ("vhdxfile"u8.ToArray(), 0, "VHDX"),
             ("conectix"u8.ToArray(), 0, "VHD"), ([0x7F, 0x10, 0xDA, 0xBE], 64, "VDI"), ([0x1F, 0x8B, 8], 0, "gzip"), ([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0], 0, "xz"),
             ([0x28, 0xB5, 0x2F, 0xFD], 0, "zstd"), ("BZh"u8.ToArray(), 0, "bzip2")])
        {
            foreign.AsSpan().Clear();
            begin.CopyTo(foreign, at);
            (int code, _, string error) = await RunAsync(world, new MemoryStream(foreign), null, "import_image", "-v", "vm2", "-i", "-", "--size", "8k");
            Assert.True(code == 1 && error.Contains("looks like", StringComparison.Ordinal) && error.Contains(words, StringComparison.Ordinal), error);
        }

        Assert.Null(world.Daemon.Directory.Find("vm2"));
        (int taken, _, string said) = await RunAsync(world, new MemoryStream(foreign), null, "import_image", "-v", "vm2", "-i", "-", "--size", "8k", "--format", "raw");
        Assert.True(taken == 0, said);
        Assert.Equal(foreign, (await world.ReadAsync("vm2"))[..foreign.Length]);
        await File.WriteAllBytesAsync(bad, [], TestContext.Current.CancellationToken);
        await RefusedAsync(world, "empty file", "import_image", "-v", "vm3", "-i", bad);
    }

    /// <summary>Gives one image, of which the connection breaks once.</summary>
    private sealed class ImageServer(byte[] image, bool hasRanges) : HttpMessageHandler
    {
        public byte[] Image { get; set; } = image;

        public string? Tag { get; set; }

        public bool HeedsIfRange { get; set; } = true;

        public bool SaysLength { get; set; } = true;

        /// <summary>How far from the place that was asked for the answer begins.</summary>
        public int Shift { get; set; }

        /// <summary>Bytes by which a rest is too short, and says so only in its length.</summary>
        public int Missing { get; set; }

        public int BreaksAt { get; set; } = 1 << 20;

        public List<long> Begun { get; } = [];

        public System.Net.HttpStatusCode Status { get; set; } = System.Net.HttpStatusCode.OK;

        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            Assert.Null(request.Headers.Authorization);
            var from = (int)(hasRanges ? request.Headers.Range?.Ranges.Single().From ?? 0 : 0);
            if (HeedsIfRange && request.Headers.IfRange?.EntityTag?.Tag is { } wanted && wanted != Tag) from = 0;
            if (from > 0) from += Shift;
            if (Status != System.Net.HttpStatusCode.OK) return Task.FromResult(new HttpResponseMessage(Status));
            Begun.Add(from);
            var answer = new HttpResponseMessage(from > 0 ? System.Net.HttpStatusCode.PartialContent : Status)
            {
                Content = new StreamContent(new Breaking(Image[from..^(from > 0 ? Missing : 0)], BreaksAt, SaysLength)),
            };
            if (SaysLength) answer.Content.Headers.ContentLength = Image.Length - from - (from > 0 ? Missing : 0);
            if (Tag is not null) answer.Headers.ETag = new(Tag);
            if (from > 0) answer.Content.Headers.ContentRange = new(from, Image.Length - 1, Image.Length);
            return Task.FromResult(answer);
        }

        private sealed class Breaking(byte[] bytes, int at, bool saysLength) : MemoryStream(bytes)
        {
            // Of what can seek the length goes into the headers by itself.
            public override bool CanSeek => saysLength;

            public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) =>
                Position >= at ? throw new IOException("reset by the test") : base.ReadAsync(buffer[..(int)Math.Min(buffer.Length, at - Position)], cancellationToken);
        }
    }

    [Fact]
    public async Task Refusals_come_before_anything_is_sent_and_in_words()
    {
        await using StreamWorld world = await FilledAsync();
        string full = world.PathOf("full"), increment = world.PathOf("increment"), bad = world.PathOf("bad");
        await DoneAsync(world, "export_image", "-v", "vm1", "-n", "s1", "-o", full);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(2, 9000));
        await world.CutAsync("vm1", 2);
        await DoneAsync(world, "export_image", "-v", "vm1", "-n", "s2", "--base", "s1", "-o", increment);
        await RefusedAsync(world, "wrong-base", "import_image", "-v", "vm2", "-i", increment);
        byte[] stream = await File.ReadAllBytesAsync(full, TestContext.Current.CancellationToken);
        await File.WriteAllBytesAsync(bad, stream[..^200], TestContext.Current.CancellationToken);
        await RefusedAsync(world, "not whole", "import_image", "-v", "vm2", "-i", bad);
        stream[5000] ^= 1;
        await File.WriteAllBytesAsync(bad, stream, TestContext.Current.CancellationToken);
        await RefusedAsync(world, "damaged", "import_image", "-v", "vm2", "-i", bad);
        Assert.Null(world.Daemon.Directory.Find("vm2"));
        await RefusedAsync(world, "Could not find", "import_image", "-v", "vm2", "-i", world.PathOf("none"));
        await RefusedAsync(world, "--base", "export_image", "-v", "vm1", "--format", "raw", "--base", "s1", "-o", world.PathOf("x"));
        await RefusedAsync(world, "no-such-snapshot", "export_image", "-v", "vm1", "-n", "s7", "-o", world.PathOf("y"));
        Assert.False(File.Exists(world.PathOf("y")));
        string said = await DoneAsync(world, "export_image", "-v", "vm1", "-o", world.PathOf("z"));
        Assert.Contains("--base export-", said, StringComparison.Ordinal);
        await DoneAsync(world, "export_image", "-v", "vm1", "--format", "raw", "-o", world.PathOf("w"));
        Assert.Equal(3, (await world.SnapshotsAsync("vm1")).Count);
    }

    /// <summary>A connection that breaks once so many bytes were sent.</summary>
    private sealed class CutStream(System.Net.Sockets.Socket socket, long left) : System.Net.Sockets.NetworkStream(socket, ownsSocket: true)
    {
        private long _left = left;

        public static async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, long cutAt, CancellationToken cancel)
        {
            var socket = new System.Net.Sockets.Socket(System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Tcp);
            await socket.ConnectAsync(context.DnsEndPoint, cancel);
            return new CutStream(socket, cutAt);
        }

        public override async ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
        {
            int count = (int)Math.Min(buffer.Length, _left);
            _left -= count;
            await base.WriteAsync(buffer[..count], cancellationToken);
            if (count == buffer.Length) return;
            Socket.Shutdown(System.Net.Sockets.SocketShutdown.Send);
            throw new IOException("the cable was pulled");
        }
    }
}
