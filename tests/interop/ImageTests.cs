using System.Diagnostics;
using System.Security.Cryptography;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Volumes leave the real daemon and come back, with other people's tools as judges and the daemon killed meanwhile.</summary>
public sealed class ImageTests : IDisposable
{
    private readonly Blockd _blockd = new("demo", "192m");
    private readonly Pfcli _pfcli;
    private readonly string _folder = Directory.CreateTempSubdirectory("blockd-image-").FullName;

    public ImageTests() => _pfcli = new Pfcli(_blockd);

    public void Dispose()
    {
        _blockd.Dispose();
        Directory.Delete(_folder, recursive: true);
    }

    private string UriOf(string volume) => $"nbd://127.0.0.1:{_blockd.Port}/{volume}";

    private string FileOf(string name) => Path.Combine(_folder, name);

    private void Fill(int seed, int pieces)
    {
        var random = new Random(seed);
        var commands = new List<string> { "-f", "raw" };
        for (int i = 0; i < pieces; i++)
        {
            commands.Add("-c");
            int at = random.Next(0, 190 << 8) * 4096, length = random.Next(1, 250) * 4096;
            commands.Add(random.Next(5) == 0 ? $"discard {at} {length}" : $"write -P {random.Next(1, 255)} {at} {length}");
        }

        Blockd.Run("qemu-io", [.. commands, UriOf("demo")]);
    }

    private static void Same(string one, string other) => Blockd.Run("qemu-img", "compare", "-f", "raw", "-F", "raw", one, other);

    [Fact]
    public void A_volume_and_its_increments_come_back_as_qemu_sees_them()
    {
        Blockd.Run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", Random(64 << 20), UriOf("demo"));
        for (int n = 1; n < 5; n++)
        {
            Fill(n, 60);
            _pfcli.Run("create_snapshot", "-v", "demo", "-n", $"s{n}");
            string file = FileOf($"s{n}.stream");
            _pfcli.Run(n == 1 ? ["export_image", "-v", "demo", "-n", "s1", "-o", file] : ["export_image", "-v", "demo", "-n", $"s{n}", "--base", $"s{n - 1}", "-o", file]);
            _pfcli.Run("import_image", "-v", "back", "-i", file);
            Same(UriOf("demo"), UriOf("back"));
        }

        _pfcli.Run("export_image", "-v", "back", "-n", "s4", "--format", "raw", "-o", FileOf("back.img"));
        Same(UriOf("demo"), FileOf("back.img"));
        _pfcli.Run("import_image", "-v", "again", "-i", FileOf("back.img"));
        Same(UriOf("demo"), UriOf("again"));
        Assert.True(new FileInfo(FileOf("s2.stream")).Length < new FileInfo(FileOf("s1.stream")).Length);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void A_qcow2_image_becomes_a_volume_unless_it_refers_to_another_file()
    {
        string raw = Random(9 << 20), image = FileOf("a.qcow2"), child = FileOf("b.qcow2");
        Blockd.Run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, image);
        _pfcli.Run("import_image", "-v", "vm1", "-i", image);
        Same(UriOf("vm1"), raw);
        Blockd.Run("qemu-img", "create", "-f", "qcow2", "-b", raw, "-F", "raw", child);
        _pfcli.Refused("another file", "import_image", "-v", "vm2", "-i", child);
        // What was cut off would be zeros, without a word.
        string cut = FileOf("c.qcow2");
        File.WriteAllBytes(cut, File.ReadAllBytes(image)[..(4 << 20)]);
        _pfcli.Refused("qemu-img check", "import_image", "-v", "vm2", "-i", cut);
        foreach ((string format, string words) in new[] { ("vmdk", "a VMDK image"), ("vdi", "a VDI image"), ("vhdx", "a VHDX image"), ("vpc", "a VHD image") })
        {
            string foreign = FileOf("d." + format);
            Blockd.Run("qemu-img", "create", "-f", format, foreign, "16m");
            _pfcli.Refused(words, "import_image", "-v", "vm2", "-i", foreign);
        }

        Assert.DoesNotContain(_pfcli.Volumes(), v => v.Name == "vm2");
        _pfcli.Run("import_image", "-v", "vm2", "-i", FileOf("d.vmdk"), "--format", "raw");
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void An_import_whose_daemon_is_killed_leaves_nothing_half_and_goes_on()
    {
        var random = new Random();
        int whole = 0, cut = 0;
        Blockd.Run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", Random(190 << 20), UriOf("demo"));
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "s1");
        _pfcli.Run("export_image", "-v", "demo", "-n", "s1", "--compress", "none", "-o", FileOf("s1"));
        Blockd.Run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", Random(190 << 20), UriOf("demo"));
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "s2");
        _pfcli.Run("export_image", "-v", "demo", "-n", "s2", "--base", "s1", "--compress", "none", "-o", FileOf("s2"));
        _pfcli.Run("export_image", "-v", "demo", "-n", "s1", "--format", "raw", "-o", FileOf("s1.img"));
        foreach (string step in new[] { "s1", "s2" })
        {
            List<string> arguments = ["import_image", "-v", "back", "-i", FileOf(step)];
            for (int round = 0; round < 6; round++)
            {
                // The first one comes from a pipe that holds a part only: however fast an import is, that one is cut.
                bool isFed = round == 0;
                IEnumerable<string> given = isFed ? arguments.Select(a => a == FileOf(step) ? "-" : a).Append("--keep") : arguments;
                using Process importing = Process.Start(new ProcessStartInfo(
                    Pfcli.Program, ["--server", _blockd.ApiUrl, "--token-file", Path.Combine(_blockd.Directory, "admin.token"), .. given])
                {
                    RedirectStandardError = true, RedirectStandardOutput = true, RedirectStandardInput = isFed,
                })!;
                importing.ErrorDataReceived += (_, _) => { };
                importing.BeginErrorReadLine();
                if (isFed)
                {
                    byte[] part = File.ReadAllBytes(FileOf(step))[..random.Next(80 << 20, 180 << 20)];
                    importing.StandardInput.BaseStream.Write(part);
                    importing.StandardInput.BaseStream.Flush();
                }
                else
                {
                    importing.WaitForExit(random.Next(200, 1500));
                }

                _blockd.Kill();
                if (isFed) importing.StandardInput.Close();
                importing.WaitForExit();
                _blockd.Restart();
                VolumeInfo? volume = _pfcli.Volumes().FirstOrDefault(v => v.Name == "back");
                bool isThere = volume is { Import: null } && volume.Snapshots == (step == "s1" ? 1 : 2);
                Assert.True(isThere || importing.ExitCode != 0, "it was said to be done");
                if (isThere)
                {
                    // Whole, if pfcli was told or not.
                    whole++;
                    break;
                }

                cut++;
                if (volume is not null && step == "s1" && volume.Import is not null)
                {
                    Assert.Equal("initializing", volume.Status);
                    Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("back")).Code);
                }
                else if (step == "s2" && volume!.Import is not null)
                {
                    Assert.Equal("online", volume.Status);
                    Same(UriOf("back"), FileOf("s1.img")); // as before the increment
                }

                bool goesOn = volume?.Import is not null;
                if (!goesOn) arguments.Remove("--resume");
                else if (!arguments.Contains("--resume")) arguments.Add("--resume");
            }

            VolumeInfo? last = _pfcli.Volumes().FirstOrDefault(v => v.Name == "back");
            bool isDone = last is not null && last.Import is null && last.Snapshots == (step == "s1" ? 1 : 2);
            if (!isDone) _pfcli.Run([.. arguments]);
            if (step == "s1") Same(UriOf("back"), FileOf("s1.img"));
        }

        Same(UriOf("demo"), UriOf("back"));
        Assert.Equal(2, _pfcli.Volume("back").Snapshots);
        Assert.True(cut > 0, $"no import was cut, {whole} were whole before the kill");
        Assert.Equal(0, _blockd.Stop());
        Blockd.Run(Path.Combine(Path.GetDirectoryName(Blockd.Program)!, "pfinspect"), "verify", _blockd.Store);
    }

    [Fact]
    public void Two_volumes_are_made_from_a_qcow2_image_and_outlive_it()
    {
        string raw = Random(40 << 20), image = FileOf("a.qcow2");
        Blockd.Run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, image);
        _pfcli.Run("import_image", "-v", "gold", "-i", image, "--image");
        Assert.True(_pfcli.Volume("gold").Image);
        Assert.Equal(0, Blockd.Try("nbdinfo", "--is", "read-only", UriOf("gold")).Code);
        Assert.NotEqual(0, Blockd.Try("qemu-io", "-f", "raw", "-c", "write 0 4k", UriOf("gold")).Code);
        _pfcli.Refused("volume-is-image", "resize_volume", "-v", "gold", "-s", "64m");
        _pfcli.Run("create_volume", "-v", "vm1", "--from", "gold");
        _pfcli.Run("clone_volume", "-v", "gold", "-c", "vm2");
        Same(UriOf("vm2"), raw); // at once
        _pfcli.Refused("vm2 is a clone of 'gold@clone-vm2'", "delete_volume", "-v", "gold", "--snapshots", "--yes");
        _pfcli.Run("flatten_volume", "-v", "vm2");
        Populated("vm1");
        Same(UriOf("gold"), raw);
        _pfcli.Run("delete_volume", "-v", "gold", "--snapshots", "--yes");
        foreach (string name in new[] { "vm1", "vm2" })
        {
            Same(UriOf(name), raw);
            Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 7 1m 1m", "-c", "read -P 7 1m 1m", UriOf(name));
        }

        Assert.Equal(0, _blockd.Stop());
        Blockd.Run(Path.Combine(Path.GetDirectoryName(Blockd.Program)!, "pfinspect"), "verify", _blockd.Store);
    }

    [Fact]
    public void A_volume_whose_daemon_is_killed_while_it_is_populated_is_attached_only_when_it_is_whole()
    {
        var random = new Random();
        string raw = Random(192 << 20);
        _pfcli.Run("import_image", "-v", "gold", "-i", raw, "--image");
        int half = 0;
        for (int round = 0; round < 12 && (half < 3 || round < 6); round++)
        {
            _pfcli.Run("create_volume", "-v", "vm", "--from", "gold");
            // The first refusals come from the run that populates, later ones from the one that goes on.
            for (int kill = 0; kill < 2; kill++)
            {
                if (_pfcli.Volume("vm").Status == "initializing")
                {
                    half++;
                    Refused("vm");
                }

                Thread.Sleep(random.Next(30));
                _blockd.Kill();
                _blockd.Restart();
            }

            Populated("vm");
            Same(UriOf("vm"), raw);
            Assert.Equal((null, false), (_pfcli.Volume("vm").Base, _pfcli.Volume("vm").Image));
            _pfcli.Run("delete_volume", "-v", "vm", "--yes");
        }

        Assert.True(half > 0, "nothing was killed while it was populated");
        Same(UriOf("gold"), raw);
        _pfcli.Run("delete_volume", "-v", "gold", "--yes"); // nothing that was cut for the copies is in the way
        Assert.Equal(0, _blockd.Stop());
        Blockd.Run(Path.Combine(Path.GetDirectoryName(Blockd.Program)!, "pfinspect"), "verify", _blockd.Store);
    }

    /// <summary>Nobody may attach the volume, and both front ends say so; unless it has become whole meanwhile.</summary>
    private void Refused(string name)
    {
        (int code, string output) = Blockd.Try("env", "LIBNBD_DEBUG=1", "nbdinfo", UriOf(name)); // the reason is among what libnbd tells only then
        (int scsi, _) = Blockd.Try("qemu-img", "info", $"iscsi://127.0.0.1:{_blockd.IscsiPort}/iqn.2026-11.org.blockserver:{name}/0");
        if (_pfcli.Volume(name).Status != "initializing") return;
        Assert.True(code != 0 && output.Contains("is being populated and not whole yet", StringComparison.Ordinal), output);
        Assert.DoesNotContain("has no export named", output, StringComparison.Ordinal);
        Assert.NotEqual(0, scsi);
    }

    private void Populated(string name)
    {
        while (_pfcli.Volume(name).Status == "initializing") Thread.Sleep(50);
        Assert.Equal("online", _pfcli.Volume(name).Status);
    }

    private string Random(int bytes)
    {
        string file = FileOf("random");
        File.WriteAllBytes(file, RandomNumberGenerator.GetBytes(bytes));
        return file;
    }
}
