using System.Globalization;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The daemon in this process, on a directory of its own, without listeners unless asked; can be stopped and
/// started again.</summary>
internal sealed class TestDaemon : IAsyncDisposable
{
    private readonly string[] _arguments;
    private readonly Func<IFile, IFile>? _layer;
    private Blockd.Daemon? _daemon;

    private TestDaemon(string[] arguments, Func<IFile, IFile>? layer)
    {
        _layer = layer;
        Root = Directory.CreateTempSubdirectory("blockd-unit-").FullName;
        DataDir = Path.Combine(Root, "data");
        _arguments = arguments;
    }

    /// <summary>A directory for files beside the data directory.</summary>
    public string Root { get; }

    public string DataDir { get; }

    public Blockd.Daemon Daemon => _daemon!;

    /// <summary>Starts one; <paramref name="arguments"/> are name=value.</summary>
    public static Task<TestDaemon> StartAsync(params string[] arguments) => StartAsync(null, arguments);

    /// <summary>Starts one with a layer in front of its disks.</summary>
    public static async Task<TestDaemon> StartAsync(Func<IFile, IFile>? layer, params string[] arguments)
    {
        var test = new TestDaemon(arguments, layer);
        await test.StartAgainAsync();
        return test;
    }

    public async Task StartAgainAsync()
    {
        var values = new Dictionary<string, IReadOnlyList<string>>
        {
            ["data-dir"] = [DataDir], ["nbd"] = ["none"], ["iscsi"] = ["none"], ["api"] = ["none"], ["store-size"] = ["80m"],
            // Most tests are about other things than room.
            ["provisioning"] = ["thin"],
        };
        foreach (string argument in _arguments)
        {
            string[] parts = argument.Split('=', 2);
            values[parts[0]] = [.. values.GetValueOrDefault(parts[0], []).Where(v => parts[0] is not ("nbd" or "iscsi" or "store-size") || v != "none"), parts[1]];
            if (parts[0] is "store-size" or "nbd" or "iscsi" or "provisioning") values[parts[0]] = parts[1].Split(' ');
        }

        _daemon = await Blockd.Daemon.StartAsync(SettingsReader.Read(values, DataDir, 1UL << 30), 0, _ => { }, null, _layer);
    }

    public async Task<bool> StopAsync(Action<string>? log = null)
    {
        bool all = _daemon is null || await _daemon.StopAsync(log ?? (_ => { }));
        _daemon = null;
        return all;
    }

    public async Task RestartAsync()
    {
        await StopAsync();
        await StartAgainAsync();
    }

    public async Task<VolumeRecord> CreateAsync(string name, ulong size = 1 << 20, Guid? store = null)
    {
        DirectoryResult result = await Daemon.Directory.CreateAsync(new CreateVolume(name, size, StoreId: store));
        Assert.True(result.Fault is null, result.Fault?.Detail);
        return result.Volume!;
    }

    /// <summary>A path beside the data directory.</summary>
    public string PathOf(string name) => Path.Combine(Root, name);

    public async ValueTask DisposeAsync()
    {
        await StopAsync();
        Directory.Delete(Root, recursive: true);
    }

    public static string Text(long number) => number.ToString(CultureInfo.InvariantCulture);
}
