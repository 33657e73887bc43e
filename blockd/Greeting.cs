using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>What a started daemon says: where everything is and what to type next.</summary>
internal static class Greeting
{
    // Beside the daemon when both were built together; else wherever the shell finds it.
    private static string Pfcli
    {
        get
        {
            string beside = Path.Combine(AppContext.BaseDirectory, "pfcli");
            return File.Exists(beside) ? $"'{beside}'" : "pfcli";
        }
    }

    /// <summary>Ends with the line <c>ready</c>.</summary>
    public static async Task WriteAsync(TextWriter output, Daemon daemon)
    {
        var text = new StringWriter { NewLine = "\n" };
        await text.WriteLineAsync($"blockd {Program.Version}, engine {daemon.EngineName}, durability {daemon.Settings.Durability.ToString().ToLowerInvariant()}");
        await text.WriteLineAsync($"  data     {daemon.Settings.DataDir}");
        foreach (StoreHost host in daemon.Stores.All)
        {
            DiskInfo disk = await host.DescribeAsync();
            await text.WriteLineAsync($"  disk     {disk.Name} {disk.Path}, {SizeText.Format(disk.SizeBytes)}, {SizeText.Format(disk.FreeBytes)} free");
        }

        foreach (VolumeRecord volume in daemon.Directory.List().Take(20))
            await text.WriteLineAsync($"  volume   {volume.Name}, {SizeText.Format(volume.SizeBytes)}");
        foreach (ListenerInfo listener in daemon.Listeners)
            await text.WriteLineAsync($"  {listener.Protocol,-8} {listener.Address}{(listener.Tls ? " (TLS)" : "")}");
        foreach (string warning in daemon.Warnings) await text.WriteLineAsync($"  warning: {warning}");

        string volumeName = daemon.Directory.List() is { Count: > 0 } volumes ? volumes[0].Name : "NAME";
        ListenerInfo? tcp = daemon.Listeners.FirstOrDefault(l => l.Protocol == "nbd" && !l.Address.StartsWith("unix:", StringComparison.Ordinal));
        ListenerInfo? unix = daemon.Listeners.FirstOrDefault(l => l.Protocol == "nbd" && l.Address.StartsWith("unix:", StringComparison.Ordinal));
        string? uri = tcp is not null ? $"nbd://{tcp.Address}/{volumeName}"
            : unix is not null ? $"nbd+unix:///{volumeName}?socket={unix.Address["unix:".Length..]}" : null;
        if (uri is not null && daemon.Settings.Tls == NbdTlsMode.Required)
        {
            uri = "nbds" + uri["nbd".Length..] + (uri.Contains('?', StringComparison.Ordinal) ? "&" : "?") + "tls-certificates=DIR";
            await text.WriteLineAsync($"""

                Type next, with ca-cert.pem, client-cert.pem and client-key.pem in DIR:
                  nbdinfo '{uri}'
                  nbdcopy disk.img '{uri}'
                """);
        }
        else if (uri is not null)
        {
            await text.WriteLineAsync($"""

                Type next in another terminal, for instance (Debian's packages: libnbd-bin, qemu-utils, qemu-system-x86, fio, nbd-client):
                  nbdinfo '{uri}'
                  nbdcopy '{uri}' copy.img
                  nbdcopy disk.img '{uri}'
                  qemu-img convert -n -O raw disk.qcow2 '{uri}'
                  qemu-system-x86_64 -drive file='{uri}',format=raw,if=virtio
                  fio --name=t --ioengine=nbd --uri='{uri}' --rw=randread --bs=4k --iodepth=32
                """);
            if (tcp is not null)
            {
                int colon = tcp.Address.LastIndexOf(':');
                await text.WriteLineAsync($"  sudo nbd-client -N {volumeName} {tcp.Address[..colon].Trim('[', ']')} {tcp.Address[(colon + 1)..]} /dev/nbd0");
            }
        }

        if (daemon.Listeners.FirstOrDefault(l => l.Protocol == "iscsi") is { } portal)
        {
            string target = $"{daemon.Settings.IscsiPrefix}:{volumeName}";
            await text.WriteLineAsync($"""
                  iscsi-ls -s iscsi://{portal.Address}
                  qemu-img convert -n -O raw disk.qcow2 iscsi://{portal.Address}/{target}/0
                  sudo iscsiadm -m discovery -t sendtargets -p {portal.Address} && sudo iscsiadm -m node -T {target} --login
                """);
        }

        if (daemon.Listeners.FirstOrDefault(l => l.Protocol == "api" && l.Address.StartsWith("http", StringComparison.Ordinal)) is { } api)
            await text.WriteLineAsync($"  {Pfcli} --server {api.Address} --token-file '{daemon.TokenPath}' list_volume");
        await text.WriteLineAsync("ready");
        await output.WriteAsync(text.ToString());
        await output.FlushAsync();
    }
}
