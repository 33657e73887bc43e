using System.Net;
using System.Net.Http.Headers;
using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>A daemon whose volumes are written to and cut from within, and whose streams go over its API.</summary>
internal sealed class StreamWorld : IAsyncDisposable
{
    private readonly HttpClient _http = new();
    private ApiServer _server;

    private StreamWorld(ApiServer server) => _server = server;

    public Blockd.Daemon Daemon => _server.Test.Daemon;

    /// <summary>What answers for every other server.</summary>
    public HttpMessageHandler? Elsewhere { get; set; }

    public string Url => $"http://127.0.0.1:{_server.Port}";

    /// <summary>A path for a file of the test.</summary>
    public string PathOf(string name) => _server.Test.PathOf(name);

    public static async Task<StreamWorld> StartAsync(params string[] arguments) =>
        new(await ApiServer.StartAsync(null, null, arguments));

    public static Guid Id(int n) => new(n, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7);

    public static byte[] Pattern(ulong seed, int length)
    {
        var data = new byte[length];
        new SeededRandom(seed).Fill(data);
        return data;
    }

    public VolumeRecord Volume(string name) => Daemon.Directory.Find(name)!;

    public StoreHost Host(string name) => Daemon.Stores.Find(Volume(name).StoreId)!;

    public Task<VolumeRecord> CreateAsync(string name, ulong size) => _server.Test.CreateAsync(name, size);

    /// <summary>Another process takes the directory, after an orderly end.</summary>
    public Task RestartAsync() => _server.RestartAsync();

    public async Task WriteAsync(string name, ulong offset, byte[] data) => Assert.Equal(
        IoStatus.Ok, await Host(name).Thread.InvokeAsync(() => Host(name).Store.OpenVolume(Volume(name).Id)!.WriteAsync(offset, data, WriteFlags.None)));

    public async Task TrimAsync(string name, ulong offset, ulong length) => Assert.Equal(
        IoStatus.Ok, await Host(name).Thread.InvokeAsync(() => Host(name).Store.OpenVolume(Volume(name).Id)!.TrimAsync(offset, length, WriteFlags.None)));

    public async Task<byte[]> ReadAsync(string name)
    {
        VolumeRecord volume = Volume(name);
        var data = new byte[volume.SizeBytes];
        ReadResult result = await Host(name).Thread.InvokeAsync(() => Host(name).Store.OpenVolume(volume.Id)!.ReadAsync(0, data));
        Assert.Equal(IoStatus.Ok, result.Status);
        return data;
    }

    public async Task CutAsync(string name, int n) => Assert.Equal(IoStatus.Ok, await Host(name).Thread.InvokeAsync(
        () => Host(name).Store.CreateSnapshotsAsync([new SnapshotRequest(Volume(name).Id, Id(n), $"s{n}", 5)])));

    public Task<IReadOnlyList<SnapshotInfo>> SnapshotsAsync(string name) => Host(name).Thread.InvokeAsync(
        () => new ValueTask<IReadOnlyList<SnapshotInfo>>(Host(name).Store.Snapshots(Volume(name).Id)));

    /// <summary>Blocks in use on all disks, once what was deleted has been given back.</summary>
    public async Task<ulong> UsedAsync()
    {
        ulong last = ulong.MaxValue;
        for (int i = 0; i < 200; i++)
        {
            ulong used = 0;
            foreach (StoreHost host in Daemon.Stores.All) used += (await host.DescribeAsync()).UsedBytes;
            if (used == last && i > 5) break;
            last = used;
            await Task.Delay(20);
        }

        return last;
    }

    public async Task<byte[]> ExportAsync(string name, int target, int? basis = null, string more = "")
    {
        using HttpResponseMessage answer = await SendAsync(
            HttpMethod.Get, $"volumes/{name}/snapshots/s{target}/stream?{(basis is { } b ? $"base=s{b}" : "")}{more}", null);
        byte[] stream = await answer.Content.ReadAsByteArrayAsync();
        Assert.True(answer.StatusCode == HttpStatusCode.OK, System.Text.Encoding.UTF8.GetString(stream));
        return stream;
    }

    /// <summary>Null when the stream was taken, else the code of the refusal.</summary>
    public async Task<string?> ImportAsync(string name, byte[] stream, string query = "")
    {
        using HttpResponseMessage answer = await SendAsync(HttpMethod.Post, $"volumes/{name}/stream?{query}", new ByteArrayContent(stream));
        return await CodeAsync(answer);
    }

    /// <summary>Sends a part of a stream, then breaks the connection.</summary>
    public async Task BreakAsync(string name, byte[] part, string query)
    {
        using var cancel = new CancellationTokenSource();
        using var body = new StreamContent(new Stopping(part, cancel));
        try
        {
            using HttpResponseMessage answer = await SendAsync(HttpMethod.Post, $"volumes/{name}/stream?{query}", body, cancel.Token);
            Assert.Fail("it was answered: " + await CodeAsync(answer));
        }
        catch (Exception e) when (e is OperationCanceledException or HttpRequestException)
        {
            // Until the daemon has noticed.
            for (int i = 0; i < 500; i++)
            {
                using HttpResponseMessage answer = await SendAsync(HttpMethod.Delete, $"volumes/none-{name}/import", null);
                if (!Daemon.Imports.IsRunning(name)) return;
                await Task.Delay(10);
            }

            Assert.Fail("the import goes on");
        }
    }

    public async Task<HttpResponseMessage> SendAsync(HttpMethod method, string path, HttpContent? body, CancellationToken cancel = default)
    {
        var request = new HttpRequestMessage(method, $"http://127.0.0.1:{_server.Port}/v1/{path}") { Content = body };
        if (body is not null) body.Headers.ContentType = new MediaTypeHeaderValue(StreamMedia.Type);
        request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", _server.Token);
        return await _http.SendAsync(request, cancel);
    }

    public static async Task<string?> CodeAsync(HttpResponseMessage answer) => answer.IsSuccessStatusCode
        ? null : JsonSerializer.Deserialize(await answer.Content.ReadAsByteArrayAsync(), ApiJson.Default.ApiProblem)!.Code;

    public async ValueTask DisposeAsync()
    {
        _http.Dispose();
        await _server.DisposeAsync();
    }

    /// <summary>Gives its bytes and then never ends: cancels instead, once they have had time to arrive.</summary>
    private sealed class Stopping(byte[] bytes, CancellationTokenSource cancel) : MemoryStream(bytes)
    {
        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            int count = await base.ReadAsync(buffer, cancellationToken);
            if (count > 0) return count;
            await Task.Delay(1000, CancellationToken.None);
            await cancel.CancelAsync();
            await Task.Delay(Timeout.Infinite, cancellationToken);
            return 0;
        }
    }
}
